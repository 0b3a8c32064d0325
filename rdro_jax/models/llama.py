"""Llama 3.x (and what shares its architecture, such as SmolLM2 and Mistral): configuration and weight table."""

from typing import Any

from rdro_jax.errors import WeightError
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.fields import number, size, truth
from rdro_jax.models.rope_config import read_rope, write_rope
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

_READ = {
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "tie_word_embeddings",
    "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "attention_bias", "mlp_bias", "quantization_config", "auto_map", "eos_token_id",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
    "decoder_sparse_step", "mlp_only_layers",
}  # fmt: skip
_HARMLESS = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "cache_implementation", "name",
    "bos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id", "bad_words_ids",
    "initializer_range", "attention_dropout", "hidden_dropout", "pretraining_tp", "gradient_checkpointing",
    "output_router_logits", "router_aux_loss_coef", "head_dtype", "chat_template", "task_specific_params",
    "id2label", "label2id", "num_labels", "problem_type", "chunk_size_feed_forward", "return_dict", "finetuning_task",
    "is_encoder_decoder", "is_decoder", "tokenizer_class", "max_length", "min_length", "do_sample", "temperature",
    "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups", "num_return_sequences", "diversity_penalty",
    "repetition_penalty", "length_penalty", "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "early_stopping",
    "transformers.js_config", "is_llama_config", "unsloth_version", "unsloth_fixed", "license",
    "prefix", "max_new_tokens",
}  # fmt: skip
"""Fields that training, sampling or other tools read: they change nothing that a forward pass computes."""


def read_config(hf: dict[str, Any], *, may_slide: bool = False) -> ModelConfig:
    """The architecture a Hugging Face `config.json` of this family describes.

    `may_slide`: whether the family has sliding windows; transformers ignores one that another family's file names.

    Raises:
        WeightError: a size is missing or wrong, or the file asks for something this decoder does not compute.
    """
    _refuse_unsupported(hf)
    window = read_window(hf)
    if window and not may_slide:
        raise WeightError(f"sliding-window attention is asked for; this decoder has none for {hf['model_type']!r}")
    n_heads, d_model = size(hf, "num_attention_heads"), size(hf, "hidden_size")
    config = ModelConfig(
        model_type=hf["model_type"],
        vocab_size=size(hf, "vocab_size"),
        d_model=d_model,
        n_layers=size(hf, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=size(hf, "num_key_value_heads", n_heads),
        head_dim=size(hf, "head_dim", d_model // n_heads),
        d_ff=size(hf, "intermediate_size"),
        rms_norm_eps=number(hf, "rms_norm_eps", 1e-6),
        rope=read_rope(hf),
        tie_word_embeddings=truth(hf, "tie_word_embeddings"),
        max_position_embeddings=size(hf, "max_position_embeddings", 2048),
        **window,
    )
    _check_heads(config)
    return config


def read_mistral(hf: dict[str, Any]) -> ModelConfig:
    """The architecture of a Mistral `config.json`: Llama, all of whose layers may look through a window."""
    absent = {"num_key_value_heads": 8, "sliding_window": 4096}  # what transformers takes where the file is silent
    return read_config(absent | hf | {"use_sliding_window": True, "max_window_layers": 0}, may_slide=True)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model, in the spelling that every version of transformers reads."""
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
        **write_rope(config.rope),
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
        "eos_token_id": list(config.eos_token_ids) or None,
    }


def write_mistral(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a Mistral model; `sliding_window` is always said, for its absence means 4096."""
    return write_config(config) | {"sliding_window": config.sliding_window}


def read_window(hf: dict[str, Any]) -> dict[str, Any]:
    """The sliding window and the layer from which it holds; published Qwen files name one and switch it off."""
    layers = size(hf, "num_hidden_layers")
    window = size(hf, "sliding_window") if hf.get("sliding_window") is not None else None
    kinds = hf.get("layer_types")
    if kinds is None:
        on = truth(hf, "use_sliding_window") and window is not None
        first = hf.get("max_window_layers", 28) if on else layers
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise WeightError(f"max_window_layers is {first!r}; wanted a whole number of layers")
    else:
        first = kinds.index("sliding_attention") if "sliding_attention" in kinds else layers
        if kinds != ["full_attention"] * first + ["sliding_attention"] * (layers - first):
            raise WeightError("layer_types alternates; wanted full_attention layers, then sliding_attention layers")
        if first < layers and window is None:
            raise WeightError("layer_types has sliding_attention but sliding_window is null; wanted a size in tokens")
    return {"sliding_window": window, "first_sliding_layer": first} if first < layers else {}


def _refuse_unsupported(hf: dict[str, Any]) -> None:
    """Raise for every setting that would change the numbers and that this decoder does not compute."""
    if hf.get("hidden_act", "silu") != "silu":
        raise WeightError(f"hidden_act is {hf['hidden_act']!r}; this decoder computes 'silu' only")
    for name in ("attention_bias", "mlp_bias"):
        if hf.get(name) and hf["model_type"] != "qwen2":
            raise WeightError(f"{name} is true; this decoder has no such bias for {hf['model_type']!r}")
    if hf.get("quantization_config"):
        raise WeightError("quantization_config is set; convert the model to float32 or bfloat16 weights first")
    # Unset or switched off, a field asks for nothing.
    asked = {name for name, value in hf.items() if value not in (None, False, "", 0) and value != [] and value != {}}
    for name in sorted(asked - _READ - _HARMLESS):
        raise WeightError(
            f"{name} is {hf[name]!r}: unknown field; remove it if it does not change what the model computes"
        )


def _check_heads(config: ModelConfig) -> None:
    if config.n_heads % config.n_kv_heads:
        raise WeightError(
            f"num_attention_heads {config.n_heads} is not a multiple of num_key_value_heads {config.n_kv_heads}"
        )
    if config.head_dim % 2:
        raise WeightError(f"head_dim is {config.head_dim}; rotary embeddings want an even number")
