"""Model folders: what is written comes back bit for bit."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hf_folders import (
    CONFIGS,
    LLAMA,
    NORM,
    QWEN2,
    assert_same,
    edit_json,
    random_params,
    tensors_of,
)
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.models import RopeConfig, arrays, load_model, load_model_config, save, save_model
from rdro_jax.models.decoder import abstract_params
from rdro_jax.models.families import weight_table
from rdro_jax.models.folder import Tensor
from rdro_jax.models.weights import flatten


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
