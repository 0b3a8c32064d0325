"""Model folders that are damaged, or hold what the decoder does not compute, are refused in one line."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hf_folders import (
    LLAMA,
    NORM,
    QWEN2,
    assert_same,
    edit_json,
    random_params,
    rewrite,
    tensors_of,
)

from rdro_jax.errors import WeightError
from rdro_jax.models import load_model, save, save_model
from rdro_jax.models.folder import INDEX, MAX_JSON_BYTES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma'; supported: llama, mistral, qwen2, qwen3, qwen3_moe"),
        ({"model_type": None}, "model_type is None"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "wanted 'LlamaForCausalLM'"),
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map asks for code"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "yarn rope wants factor >= 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1}}, "beta_fast > beta_slow"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0, "beta_fast": 32}}, "'linear' does not read it"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None; wanted a positive number"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5: unknown field"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor is None; wanted a positive number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": "big"}, "rope_theta is 'big'; wanted a positive number"),
        ({"vocab_size": None}, "vocab_size is None; wanted a positive whole number"),
        ({"hidden_size": 16.0}, "hidden_size is 16.0; wanted a positive whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "sliding-window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is null"),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, "layer_types alternates"),
        ({"eos_token_id": "<eos>"}, "eos_token_id is '<eos>'"),
        ({"rope_scaling": ["llama3"]}, r"rope_scaling is \['llama3'\]; wanted an object"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(WeightError, match=message) as caught:
        load_model(folder)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- damaged weights


def drop(name):
    return lambda folder: rewrite(folder, lambda tensors: tensors.pop(name))


def put(name, array):
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({name: array}))


def overwrite(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def append(folder):
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"tail")


def one_nan(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan


DAMAGE = {
    "missing tensor": (drop("model.layers.1.mlp.up_proj.weight"), "missing tensor 'model.layers.1.mlp.up_proj.weight'"),
    "missing head": (drop("lm_head.weight"), "missing tensor 'lm_head.weight'"),
    "unknown tensor": (put("score.weight", np.ones(3, np.float32)), "unknown tensor 'score.weight'"),
    "a layer too many": (put("model.layers.2.mlp.up_proj.weight", np.ones((24, 16), np.float32)), "unknown tensor"),
    "wrong shape": (put(NORM, np.ones(17, np.float32)), r"norm.weight' has shape \[17\]; the configuration"),
    "wrong type": (put(NORM, np.ones(16, np.int32)), "'model.norm.weight' has type I32"),
    "nan": (lambda folder: rewrite(folder, one_nan), "'model.layers.1.mlp.up_proj.weight' holds NaN or infinity"),
    "bfloat16 nan": (put(NORM, np.full(16, np.nan, ml_dtypes.bfloat16)), "holds NaN"),
    "infinity": (put(NORM, np.full(16, -np.inf, np.float32)), "holds NaN or infinity"),
    "wrong vocabulary": (lambda f: edit_json(f / "config.json", vocab_size=49), r"; the configuration implies"),
    "truncated": (truncate, "not a whole safetensors file"),
    "trailing bytes": (append, "not a whole safetensors file"),
    "empty": (overwrite(b""), "the file is empty"),
    "web page": (overwrite(b"<!DOCTYPE html><html>Sign in</html>"), "this is a web page"),
    "git-lfs": (overwrite(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs pointer; run `git"),
    "bad header": (overwrite(b"\x10" + b"\0" * 7 + b"{'not json......"), "not a whole safetensors file"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
    "list config": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
    "duplicate key": (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "duplicate key 'a'"),
    "huge config": (lambda folder: os.truncate(folder / "config.json", 100_000_001), "has at most 100000000"),
    "binary config": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "config.json: not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_in_one_line(folder, name):
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(WeightError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(WeightError, match="nowhere: no such folder"):
        load_model(tmp_path / "nowhere")


def test_stray_head_of_a_tied_model_must_equal_the_embedding(tmp_path):
    save_model(random_params(QWEN2), QWEN2, tmp_path / "m")
    embedding = tensors_of(tmp_path / "m")["model.embed_tokens.weight"]
    put("lm_head.weight", embedding)(tmp_path / "m")
    put("model.layers.0.self_attn.rotary_emb.inv_freq", np.ones(2, np.float32))(tmp_path / "m")
    assert_same(load_model(tmp_path / "m")[0], random_params(QWEN2))
    put("lm_head.weight", embedding + 1)(tmp_path / "m")
    with pytest.raises(WeightError, match=r"'lm_head.weight' differs from the embedding"):
        load_model(tmp_path / "m")


# ---- damaged indexes


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 8000)
    save_model(random_params(LLAMA), LLAMA, tmp_path / "sharded")
    return tmp_path / "sharded"


def edit_map(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def first_file(folder):
    return sorted(file.name for file in folder.glob("*.safetensors"))[0]


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "x.bin", 3, None]
)
def test_an_index_must_not_reach_outside(sharded, name):
    edit_map(sharded, lambda weight_map: weight_map.update({NORM: name}))
    with pytest.raises(WeightError, match=r"wanted a .safetensors file name without a path"):
        load_model(sharded)


def test_an_index_beyond_any_size_is_refused_unread(sharded):
    with (sharded / INDEX).open("r+b") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(WeightError, match=r"index\.json: 100000001 bytes; a file of this kind has at most 100000000"):
        load_model(sharded)


def test_a_link_must_not_leave_the_folder(sharded, tmp_path):
    shard = sharded / first_file(sharded)
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(WeightError, match="outside the model folder"):
        load_model(sharded)


def test_links_of_a_hugging_face_cache_are_followed(folder, tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        os.replace(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert_same(load_model(snapshot)[0], random_params(LLAMA))


def test_a_missing_shard_is_named(sharded):
    (sharded / first_file(sharded)).unlink()
    with pytest.raises(WeightError, match=r"model-00001-of-\d+.safetensors: missing"):
        load_model(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded):
    shards = sorted(file.name for file in sharded.glob("*.safetensors"))
    stolen = {}
    rewrite(sharded, lambda tensors: stolen.update(tensors), shards[0])
    rewrite(sharded, lambda tensors: tensors.update(dict([next(iter(stolen.items()))])), shards[1])
    with pytest.raises(WeightError, match=r"duplicate tensor .*, also in model-00001"):
        load_model(sharded)


def test_a_tensor_the_index_does_not_name_is_refused(sharded):
    edit_map(sharded, lambda weight_map: weight_map.pop(NORM))
    with pytest.raises(WeightError, match=r"unknown tensor .* does not place it here"):
        load_model(sharded)


def test_a_tensor_only_the_index_names_is_refused(sharded):
    edit_map(sharded, lambda weight_map: weight_map.update(ghost=first_file(sharded)))
    with pytest.raises(WeightError, match="missing tensor 'ghost'"):
        load_model(sharded)


def test_an_index_without_a_map_is_refused(sharded):
    edit_json(sharded / "model.safetensors.index.json", weight_map={})
    with pytest.raises(WeightError, match="weight_map is missing or empty"):
        load_model(sharded)


# ---- saving what cannot be saved
