"""Small models as Hugging Face folders, and ways to change what stands in them."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from rdro_jax.models import ModelConfig, MoEConfig, RopeConfig
from rdro_jax.models.decoder import abstract_params

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

NORM = "model.norm.weight"


def random_params(config, dtype="float32"):
    leaves, tree = jax.tree.flatten(abstract_params(config))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 1, leaf.shape), dtype) for leaf in leaves])


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
