"""Adapters: they start by changing nothing, add what the paper says, and come back from a PEFT folder as they were."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file
from tiny import CONFIG

from rdro_jax.errors import ConfigError, StorageError, WeightError
from rdro_jax.models import (
    LoraConfig,
    MoEConfig,
    abstract_adapters,
    adapt,
    forward,
    init_adapters,
    init_params,
    load_adapters,
    merge,
    save_adapters,
)
from rdro_jax.models.projection import Projection
from rdro_jax.models.weights import flatten
from rdro_jax.parallel import SHARDS, MeshConfig, make_mesh, param_shardings

LORA = LoraConfig(r=3, lora_alpha=5.0, target_modules=("q_proj", "down_proj"))
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 12))


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def adapters():
    """Adapters as after training: no matrix is zero."""
    fresh = init_adapters(CONFIG, LORA, jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), fresh)


hidden = jax.jit(lambda params: forward(params, CONFIG, TOKENS))


def test_fresh_adapters_change_nothing(params):
    fresh = init_adapters(CONFIG, LORA, jax.random.key(1))
    assert set(flatten(fresh)) == {
        f"layers/{module}/lora_{letter}" for module in ("self_attn/q_proj", "mlp/down_proj") for letter in "AB"
    }
    np.testing.assert_array_equal(hidden(adapt(params, fresh, LORA)), hidden(params))
    spread = np.abs(fresh["layers"]["mlp"]["down_proj"]["lora_A"]).max()
    assert 0.9 * CONFIG.d_ff**-0.5 < spread <= CONFIG.d_ff**-0.5


@pytest.mark.parametrize("lora", [LORA, replace(LORA, use_rslora=True)])
def test_merged_and_beside_are_the_same_model(params, adapters, lora):
    merged = merge(params, adapters, lora)
    scale = 5.0 / (3.0**0.5 if lora.use_rslora else 3.0)
    down, up = (np.asarray(adapters["layers"]["self_attn"]["q_proj"][f"lora_{x}"], np.float64) for x in "AB")
    wanted = params["layers"]["self_attn"]["q_proj"]["kernel"] + scale * np.stack(
        [a @ b for a, b in zip(down, up, strict=True)]
    )
    np.testing.assert_allclose(merged["layers"]["self_attn"]["q_proj"]["kernel"], wanted, atol=1e-6)
    beside = hidden(adapt(params, adapters, lora))
    np.testing.assert_allclose(beside, hidden(merged), atol=2e-5)
    assert np.abs(beside - hidden(params)).max() > 0.1


def test_a_bfloat16_base_stays_bfloat16(params, adapters):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(merge(half, adapters, LORA))} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype(jnp.float32)}


def test_dropout_is_of_the_adapters_inputs_and_needs_a_key(params, adapters):
    lora = replace(LORA, lora_dropout=0.4)
    np.testing.assert_array_equal(hidden(adapt(params, adapters, lora)), hidden(adapt(params, adapters, LORA)))
    one, same, other = (hidden(adapt(params, adapters, lora, jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3


def test_dropout_keeps_the_mean():
    """A zero kernel and adapters that pass their input through: what comes out is the dropped input."""
    identity, zero = jnp.eye(8), jnp.zeros((8, 8))
    more = {"lora_key": jax.random.key(0), "lora_dropout": jnp.float32(0.25)}
    variables = {"params": {"kernel": zero, "lora_A": identity, "lora_B": identity, **more}}
    out = np.asarray(Projection(CONFIG, 8).apply(variables, jnp.full((4000, 8), 3.0)))
    np.testing.assert_allclose(np.unique(out), [0.0, 4.0], rtol=1e-6)
    assert abs((out == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / out.size) ** 0.5


def test_sharded_adapters_give_the_same_numbers(params, adapters):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    whole = adapt(params, adapters, LORA)
    spread = jax.device_put(whole, param_shardings(whole, mesh))
    down = spread["layers"]["mlp"]["down_proj"]
    assert (down["lora_A"].sharding.spec, down["lora_B"].sharding.spec) == (
        PartitionSpec(None, "tensor", None),
        PartitionSpec(None, None, SHARDS),
    )
    np.testing.assert_allclose(hidden(spread), hidden(whole), atol=1e-5)


def test_what_has_no_matrix_is_refused():
    with pytest.raises(ConfigError, match=r"'qproj' is no matrix to adapt here; there are \['down_proj', 'gate_proj'"):
        abstract_adapters(CONFIG, replace(LORA, target_modules=("qproj",)))
    routed = replace(CONFIG, moe=MoEConfig(4, 2, 8))
    with pytest.raises(ConfigError, match="'down_proj' is no matrix to adapt here"):
        abstract_adapters(routed, LORA)


# ---- PEFT folders


@pytest.fixture
def folder(adapters, tmp_path):
    save_adapters(adapters, LORA, tmp_path / "adapter", base="models/base")
    return tmp_path / "adapter"


def test_names_and_layout_are_pefts(folder, adapters):
    """A hand-written list, from the names in adapters that PEFT saves."""
    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(tensors) == {
        f"base_model.model.model.layers.{layer}.{module}.lora_{letter}.weight"
        for layer in range(2)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for letter in "AB"
    }
    stored = tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(stored, adapters["layers"]["self_attn"]["q_proj"]["lora_A"][1].T)
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_is_saved_comes_back(folder, adapters):
    loaded, lora = load_adapters(folder, CONFIG)
    assert (lora.r, lora.lora_alpha, set(lora.target_modules)) == (3, 5.0, {"q_proj", "down_proj"})
    jax.tree.map(np.testing.assert_array_equal, loaded, adapters)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"target_modules": ".*q_proj"}, "wanted a list of names"),
        ({"r": 0}, "r is 0"),
        ({"r": 4}, r"lora_A.weight' has shape \[3, 64\]; the configuration implies \[4, 64\]"),
        ({"target_modules": ["q_proj"]}, "unknown tensor"),
        ({"target_modules": ["q_proj", "down_proj", "k_proj"]}, "missing tensor"),
    ],
)
def test_what_is_not_computed_is_refused(folder, changes, message):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(WeightError, match=message) as caught:
        load_adapters(folder, CONFIG)
    assert "\n" not in str(caught.value)


def test_damage_is_refused(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, file)
    with pytest.raises(WeightError, match="holds NaN or infinity"):
        load_adapters(folder, CONFIG)
    file.unlink()
    with pytest.raises(WeightError, match=r"adapter_model.safetensors: missing"):
        load_adapters(folder, CONFIG)


def test_an_unwritable_target_is_a_storage_error(adapters, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot save the adapter"):
        save_adapters(adapters, LORA, tmp_path / "file" / "a", base="models/base")
