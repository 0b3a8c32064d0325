"""The families of decoders by Hugging Face `model_type`: adding one is a table, two functions and a row here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rdro_jax.models import llama, qwen
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.weights import HEAD, Weight


class Family(NamedTuple):
    """What distinguishes a family on disk."""

    architecture: str
    """The name under `architectures` in config.json."""
    table: tuple[Weight, ...]
    """All weights but the head."""
    read_config: Callable[[dict[str, Any]], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]


FAMILIES = {
    "llama": Family("LlamaForCausalLM", llama.TABLE, llama.read_config, llama.write_config),
    "mistral": Family("MistralForCausalLM", llama.TABLE, llama.read_mistral, llama.write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", qwen.QWEN2_TABLE, qwen.read_qwen2, qwen.write_qwen),
    "qwen3": Family("Qwen3ForCausalLM", qwen.QWEN3_TABLE, qwen.read_qwen3, qwen.write_qwen),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", qwen.QWEN3_MOE_TABLE, qwen.read_qwen3_moe, qwen.write_qwen3_moe),
}


def weight_table(config: ModelConfig) -> tuple[Weight, ...]:
    """Every weight of a model; the head among them only when it is not the embedding."""
    table = FAMILIES[config.model_type].table
    return table if config.tie_word_embeddings else (*table, HEAD)
