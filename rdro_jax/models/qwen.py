"""Qwen 2 / 2.5 and Qwen 3: Llama with biases on queries, keys and values, or with normalised queries and keys."""

from dataclasses import replace
from typing import Any

from rdro_jax.models import llama
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.weights import bias, scale

QWEN2_TABLE = (*llama.TABLE, *(bias(f"self_attn.{which}_proj") for which in "qkv"))
QWEN3_TABLE = (*llama.TABLE, scale("self_attn.q_norm"), scale("self_attn.k_norm"))


def read_qwen2(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Qwen 2 or 2.5 `config.json`; the biases are part of the family, not of the file."""
    return replace(llama.read_config(hf), qkv_bias=True)


def read_qwen3(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Qwen 3 `config.json`, where heads are 128 wide unless the file says otherwise."""
    return replace(llama.read_config({"head_dim": 128} | hf), qk_norm=True)


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a Qwen model, sliding windows off."""
    return llama.write_config(config) | {"use_sliding_window": False}
