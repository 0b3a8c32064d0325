"""Model folders: what is written comes back bit for bit, and every damaged folder is refused in one line."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.models import ModelConfig, MoEConfig, RopeConfig, arrays, load_model, load_model_config, save, save_model
from rdro_jax.models.decoder import abstract_params
from rdro_jax.models.families import weight_table
from rdro_jax.models.folder import INDEX, MAX_JSON_BYTES, Tensor
from rdro_jax.models.weights import flatten

LLAMA = ModelConfig(
    "llama", 48, 16, 2, 4, 2, 4, 24, rope=RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 32), eos_token_ids=(3, 5)
)
QWEN2 = replace(LLAMA, model_type="qwen2", qkv_bias=True, rope=RopeConfig(theta=1e6), tie_word_embeddings=True)
QWEN3 = replace(LLAMA, model_type="qwen3", qk_norm=True, rope=RopeConfig(theta=1e6), head_dim=6)
MOE = replace(QWEN3, model_type="qwen3_moe", moe=MoEConfig(4, 2, 12, True))
MISTRAL = replace(LLAMA, model_type="mistral", rope=RopeConfig(theta=1e6), sliding_window=7)
YARN = replace(QWEN2, rope=RopeConfig("yarn", 1e6, 4.0, original_max_position_embeddings=512, attention_factor=1.1))
LINEAR = replace(LLAMA, rope=RopeConfig("linear", 1e4, 2.0), tie_word_embeddings=True)
WINDOW = replace(QWEN2, sliding_window=5, first_sliding_layer=1)
CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "moe": MOE, "mistral": MISTRAL}
CONFIGS |= {"yarn": YARN, "linear": LINEAR, "window": WINDOW}


def random_params(config, dtype="float32"):
    leaves, tree = jax.tree.flatten(abstract_params(config))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 1, leaf.shape), dtype) for leaf in leaves])


@pytest.fixture
def folder(tmp_path):
    """A sound folder, to be damaged."""
    save_model(random_params(LLAMA), LLAMA, tmp_path / "model")
    return tmp_path / "model"


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, change, file="model.safetensors"):
    """Apply `change` to the tensors of a file and write it back."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda leaf: leaf.dtype, other)


# ---- round trips


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_comes_back(family, dtype, tmp_path):
    config, params = CONFIGS[family], random_params(CONFIGS[family], dtype)
    save_model(params, config, tmp_path / "a")
    loaded, read = load_model(tmp_path / "a", dtype=dtype)
    assert read == config
    assert_same(loaded, params)
    save_model(loaded, read, tmp_path / "b", base=tmp_path / "a")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_names_and_layout_are_hugging_faces(folder):
    """A hand-written list, from the names of published Llama checkpoints."""
    params, tensors = random_params(LLAMA), tensors_of(folder)
    layer = (
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj"
    )
    layer = [*layer.split(), "input_layernorm", "post_attention_layernorm"]
    wanted = {f"model.layers.{index}.{name}.weight" for index in range(2) for name in layer}
    assert set(tensors) == wanted | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    np.testing.assert_array_equal(
        tensors["model.layers.1.mlp.down_proj.weight"], params["layers"]["mlp"]["down_proj"]["kernel"][1].T
    )
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["lm_head"]["embedding"])
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (8, 16)


def test_tied_head_is_not_written(tmp_path):
    save_model(random_params(QWEN2), QWEN2, tmp_path / "m")
    names = set(tensors_of(tmp_path / "m"))
    assert "lm_head.weight" not in names
    assert "model.layers.0.self_attn.q_proj.bias" in names


def test_sharded_save_and_load(tmp_path, monkeypatch):
    params = random_params(LLAMA)
    monkeypatch.setattr(save, "SHARD_BYTES", 4000)
    save_model(params, LLAMA, tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {file.name for file in (tmp_path / "m").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert_same(load_model(tmp_path / "m")[0], params)
    monkeypatch.undo()
    save_model(params, LLAMA, tmp_path / "m")  # one file again: the shards and their index must go
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    assert_same(load_model(tmp_path / "m")[0], params)


@pytest.mark.parametrize("piece_bytes", [arrays.PIECE_BYTES, 200])
@pytest.mark.parametrize("family", ["llama", "moe"])
def test_each_device_gets_its_slices(family, piece_bytes, tmp_path, monkeypatch):
    """Put together on the host, and filled in place piece by piece as large arrays are."""
    config = CONFIGS[family]
    save_model(random_params(config), config, tmp_path)
    monkeypatch.setattr(arrays, "PIECE_BYTES", piece_bytes)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    specs = [PartitionSpec(None), PartitionSpec("tensor", "fsdp"), PartitionSpec(None, "fsdp", "tensor")]
    specs.append(PartitionSpec(None, None, "tensor", "fsdp"))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, specs[leaf.ndim - 1]), abstract_params(config))
    loaded, _ = load_model(tmp_path, shardings=shardings)
    assert_same(loaded, random_params(config))
    mlp = loaded["layers"]["mlp"]
    kernel, wanted = (mlp["experts"], (2, 4, 8, 6)) if family == "moe" else (mlp, (2, 8, 12))
    assert kernel["up_proj"]["kernel"].addressable_shards[0].data.shape == wanted
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == shardings
    assert_same(load_model(tmp_path)[0], loaded)
    save_model(loaded, config, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("gather_bytes", [300, save.GATHER_BYTES])
def test_what_processes_gather_in_blocks_is_the_tensor(gather_bytes, monkeypatch):
    """Of arrays split along the axis the blocks go along, along another, along both, and along none."""
    monkeypatch.setattr(save, "GATHER_BYTES", gather_bytes)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    table = {row.ours: row for row in weight_table(LLAMA)}
    for path, spec in {
        "layers/self_attn/q_proj/kernel": PartitionSpec(None, "fsdp", "tensor"),
        "layers/mlp/down_proj/kernel": PartitionSpec(None, "tensor"),
        "layers/mlp/up_proj/kernel": PartitionSpec(None, None, "tensor"),
        "embed_tokens/embedding": PartitionSpec(("fsdp", "tensor")),
        "norm/scale": PartitionSpec(),
    }.items():
        row, leaf = table[path], jax.device_put(flatten(random_params(LLAMA))[path], NamedSharding(mesh, spec))
        place = row.places(leaf.shape)[-1]
        gathered = np.full(row.hf_shape(leaf.shape), np.nan, np.float32)
        save._gather(leaf, place, row, gathered)
        np.testing.assert_array_equal(gathered, row.transform.to_hf(np.asarray(leaf)[place]))


def test_each_part_of_a_file_is_read_once(folder, monkeypatch):
    """Whatever the number of devices: what two hold copies of is read for both, and nothing is read for none."""
    read = []
    whole = Tensor.read
    monkeypatch.setattr(Tensor, "read", lambda self, index: read.append(whole(self, index)) or read[-1])
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
    spec = {1: PartitionSpec(), 2: PartitionSpec(None, "fsdp"), 3: PartitionSpec(None, "fsdp")}
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, spec[leaf.ndim]), abstract_params(LLAMA))
    load_model(folder, shardings=shardings)
    assert sum(part.nbytes for part in read) == sum(array.nbytes for array in tensors_of(folder).values())


def test_dtype_is_asked_for(folder):
    params, _ = load_model(folder, dtype="bfloat16")
    wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(LLAMA))
    assert_same(params, wanted)


def test_dtype_changes_when_asked_only(tmp_path):
    save_model(random_params(LLAMA, "bfloat16"), LLAMA, tmp_path / "a")
    save_model(random_params(LLAMA), LLAMA, tmp_path / "b", dtype="bfloat16")
    assert tensors_of(tmp_path / "a")["lm_head.weight"].dtype == ml_dtypes.bfloat16
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_file_that_reads_back_otherwise_is_not_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(Tensor, "digest", lambda self: b"" if self.name == NORM else bytes(16))
    with pytest.raises(StorageError, match="reads back other than written"):
        save_model(random_params(LLAMA), LLAMA, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_base_files_are_copied_byte_for_byte(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"):
        (folder / name).write_text(f"the {name}\r\n")
    (folder / "generation_config.json").write_text('{ "eos_token_id":   7 }')
    (folder / "training_args.bin").write_text("not this one")
    save_model(random_params(LLAMA), LLAMA, tmp_path / "out", base=folder)
    copied = {file.name for file in (tmp_path / "out").iterdir()}
    assert copied == {file.name for file in folder.iterdir()} - {"training_args.bin"}
    for name in copied:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_other_files_of_the_target_stay(folder):
    (folder / "metrics.jsonl").write_text("{}")
    save_model(random_params(LLAMA), LLAMA, folder, base=folder)
    assert (folder / "metrics.jsonl").read_text() == "{}"
    assert not [file for file in folder.parent.iterdir() if file.name.startswith(".")]


# ---- configuration


def test_stop_tokens_come_from_generation_config_first(folder):
    assert load_model_config(folder).eos_token_ids == (3, 5)
    (folder / "generation_config.json").write_text('{"eos_token_id": [9, 8]}')
    assert load_model_config(folder).eos_token_ids == (9, 8)
    (folder / "generation_config.json").write_text("{}")
    assert load_model_config(folder).eos_token_ids == (3, 5)


def test_both_spellings_of_rope_read_alike(folder):
    before = load_model_config(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["dtype"] = raw.pop("torch_dtype")
    raw["rope_parameters"] = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_model_config(folder) == before
    raw["rope_parameters"]["type"] = raw["rope_parameters"].pop("rope_type")  # as old Llama 3.1 files have it
    (folder / "config.json").write_text(json.dumps(raw))
    assert load_model_config(folder) == before


def test_absent_settings_mean_what_transformers_means(folder):
    raw = json.loads((folder / "config.json").read_text())
    for name in ("head_dim", "num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "eos_token_id"):
        del raw[name]
    (folder / "config.json").write_text(json.dumps(raw))
    config = load_model_config(folder)
    assert (config.head_dim, config.n_kv_heads, config.rope, config.rms_norm_eps) == (4, 4, RopeConfig(), 1e-6)
    assert config.eos_token_ids == ()


def test_a_window_that_is_switched_off_is_fine(folder):
    edit_json(folder / "config.json", use_sliding_window=False, sliding_window=4096, max_window_layers=0)
    assert load_model_config(folder) == LLAMA


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


NORM = "model.norm.weight"
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


def test_params_of_another_shape_are_refused(tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(WeightError, match=r"array 'embed_tokens/embedding' has shape \[48, 16\]; wanted \[50, 16\]"):
        save_model(params, replace(LLAMA, vocab_size=50), tmp_path / "m")
    del params["lm_head"]
    with pytest.raises(WeightError, match="missing array 'lm_head/embedding'"):
        save_model(params, LLAMA, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_base_of_another_architecture_is_refused(folder, tmp_path):
    other = replace(LLAMA, rms_norm_eps=1e-5)
    with pytest.raises(WeightError, match="rms_norm_eps is 1e-06, the saved model's is 1e-05"):
        save_model(random_params(other), other, tmp_path / "m", base=folder)


def test_an_unwritable_target_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot save the model"):
        save_model(random_params(LLAMA), LLAMA, tmp_path / "file" / "m")
