"""Llama 3.x (and what shares its architecture, such as SmolLM2): configuration and weight table."""

from typing import Any

from rdro_jax.errors import WeightError
from rdro_jax.models.config import ModelConfig, RopeConfig
from rdro_jax.models.weights import IDENTITY, Weight, kernel, scale

TABLE = (
    Weight("model.embed_tokens.weight", "embed_tokens/embedding", IDENTITY),
    scale("input_layernorm"),
    kernel("self_attn.q_proj"),
    kernel("self_attn.k_proj"),
    kernel("self_attn.v_proj"),
    kernel("self_attn.o_proj"),
    scale("post_attention_layernorm"),
    kernel("mlp.gate_proj"),
    kernel("mlp.up_proj"),
    kernel("mlp.down_proj"),
    Weight("model.norm.weight", "norm/scale", IDENTITY),
)

_LLAMA3_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """The architecture a Hugging Face `config.json` of this family describes.

    Raises:
        WeightError: a size is missing or wrong, or the file asks for something this decoder does not compute.
    """
    _refuse_unsupported(hf)
    n_heads, d_model = _size(hf, "num_attention_heads"), _size(hf, "hidden_size")
    config = ModelConfig(
        model_type=hf["model_type"],
        vocab_size=_size(hf, "vocab_size"),
        d_model=d_model,
        n_layers=_size(hf, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=_size(hf, "num_key_value_heads", n_heads),
        head_dim=_size(hf, "head_dim", d_model // n_heads),
        d_ff=_size(hf, "intermediate_size"),
        rms_norm_eps=_number(hf, "rms_norm_eps", 1e-6),
        rope=read_rope(hf),
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        max_position_embeddings=_size(hf, "max_position_embeddings", 2048),
    )
    _check_heads(config)
    return config


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, in the spelling that every version of transformers reads."""
    rope = config.rope
    scaling = {"rope_type": "llama3"} | {name: getattr(rope, name) for name in _LLAMA3_NUMBERS}
    return {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling if rope.kind == "llama3" else None,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "eos_token_id": list(config.eos_token_ids) or None,
    }


def read_rope(hf: dict[str, Any]) -> RopeConfig:
    """RoPE from either spelling: `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling`."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(hf.get(name), dict | None):
            raise WeightError(f"{name} is {hf[name]!r}; wanted an object or null")
    given = {"rope_theta": hf.get("rope_theta")} | (hf.get("rope_scaling") or {}) | (hf.get("rope_parameters") or {})
    theta = _number(given, "rope_theta", 10000.0)
    kind = given.get("rope_type", given.get("type", "default"))
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise WeightError(
            f"partial_rotary_factor is {given['partial_rotary_factor']}; this decoder rotates whole heads (1.0)"
        )
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise WeightError(f"rope type {kind!r} is not supported; supported: 'default', 'llama3'")
    factor, low, high = (_number(given, name) for name in _LLAMA3_NUMBERS[:3])
    original = _size(given, _LLAMA3_NUMBERS[3], hf.get("max_position_embeddings"))
    if not (factor >= 1 and high > low > 0):
        raise WeightError(
            f"llama3 rope wants factor >= 1 and high_freq_factor > low_freq_factor > 0, got {factor}, {high}, {low}"
        )
    return RopeConfig("llama3", theta, factor, low, high, original)


def _refuse_unsupported(hf: dict[str, Any]) -> None:
    """Raise for every setting that would change the numbers and that this decoder does not compute."""
    if hf.get("hidden_act", "silu") != "silu":
        raise WeightError(f"hidden_act is {hf['hidden_act']!r}; this decoder computes 'silu' only")
    for name in ("attention_bias", "mlp_bias"):
        if hf.get(name) and hf["model_type"] != "qwen2":
            raise WeightError(f"{name} is true; this decoder has no such bias for {hf['model_type']!r}")
    if hf.get("quantization_config"):
        raise WeightError("quantization_config is set; convert the model to float32 or bfloat16 weights first")
    if _slides(hf):
        raise WeightError("sliding-window attention is in use; this decoder computes full attention only")


def _slides(hf: dict[str, Any]) -> bool:
    """True where some layer really attends through a window: published Qwen files name one and switch it off."""
    if hf.get("layer_types"):
        return any(kind != "full_attention" for kind in hf["layer_types"])
    windowed = hf.get("use_sliding_window", False) and hf.get("sliding_window") is not None
    return bool(windowed) and hf.get("max_window_layers", 28) < hf["num_hidden_layers"]


def _check_heads(config: ModelConfig) -> None:
    if config.n_heads % config.n_kv_heads:
        raise WeightError(
            f"num_attention_heads {config.n_heads} is not a multiple of num_key_value_heads {config.n_kv_heads}"
        )
    if config.head_dim % 2:
        raise WeightError(f"head_dim is {config.head_dim}; rotary embeddings want an even number")


def _size(hf: dict[str, Any], name: str, default: int | None = None) -> int:
    """A positive whole number; absent and null mean the default."""
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightError(f"{name} is {value!r}; wanted a positive whole number")
    return value


def _number(hf: dict[str, Any], name: str, default: float | None = None) -> float:
    """A positive number; absent and null mean the default."""
    value = default if hf.get(name) is None else hf[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise WeightError(f"{name} is {value!r}; wanted a positive number")
    return float(value)
