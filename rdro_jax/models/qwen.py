"""Qwen 2 / 2.5 and Qwen 3: Llama with biases on queries, keys and values, or with normalised queries and keys; and
Qwen 3 MoE, whose feed-forward layers are routed experts."""

from dataclasses import replace
from typing import Any

from rdro_jax.errors import WeightError
from rdro_jax.models import llama
from rdro_jax.models.config import ModelConfig, MoEConfig
from rdro_jax.models.fields import size, truth
from rdro_jax.models.weights import bias, expert_kernel, kernel, scale

QWEN2_TABLE = (*llama.TABLE, *(bias(f"self_attn.{which}_proj") for which in "qkv"))
QWEN3_TABLE = (*llama.TABLE, scale("self_attn.q_norm"), scale("self_attn.k_norm"))
QWEN3_MOE_TABLE = (
    *(row for row in QWEN3_TABLE if "mlp." not in row.hf),
    kernel("mlp.gate"),
    *(expert_kernel(name) for name in ("gate_proj", "up_proj", "down_proj")),
)


def read_qwen2(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Qwen 2 or 2.5 `config.json`; the biases are part of the family, not of the file."""
    return replace(llama.read_config({"num_key_value_heads": 32} | hf, may_slide=True), qkv_bias=True)


def read_qwen3(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Qwen 3 `config.json`, where heads are 128 wide unless the file says otherwise."""
    absent = {"head_dim": 128, "num_key_value_heads": 32}
    return replace(llama.read_config(absent | hf, may_slide=True), qk_norm=True)


def read_qwen3_moe(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Qwen 3 MoE `config.json`, all of whose layers must be routed, without a window."""
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise WeightError("mlp_only_layers or decoder_sparse_step asks for dense layers; wanted experts in every layer")
    n_experts = size(hf, "num_experts", hf.get("num_local_experts") or 128)
    moe = MoEConfig(
        n_experts,
        size(hf, "num_experts_per_tok", 8),
        size(hf, "moe_intermediate_size", 768),
        truth(hf, "norm_topk_prob"),
    )
    if moe.n_active > n_experts:
        raise WeightError(f"num_experts_per_tok is {moe.n_active}; wanted at most num_experts = {n_experts}")
    # No head_dim here: transformers takes hidden_size / num_attention_heads for this family.
    return replace(llama.read_config({"num_key_value_heads": 4} | hf), qk_norm=True, moe=moe)


def write_qwen(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a Qwen model."""
    slides = config.sliding_window is not None
    window = {"sliding_window": config.sliding_window, "max_window_layers": config.first_sliding_layer}
    return llama.write_config(config) | {"use_sliding_window": slides} | (window if slides else {})


def write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a Qwen 3 MoE model."""
    moe = config.moe
    assert moe is not None, "a qwen3_moe has experts"
    return write_qwen(config) | {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_active,
        "moe_intermediate_size": moe.d_expert,
        "norm_topk_prob": moe.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
