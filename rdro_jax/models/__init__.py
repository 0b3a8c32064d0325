"""Decoders of Llama 3, Qwen 2 / 2.5 and Qwen 3 as pure functions, read from and written to Hugging Face folders."""

from rdro_jax.models.attention import Cache
from rdro_jax.models.config import ModelConfig, MoEConfig, Remat, RopeConfig
from rdro_jax.models.decoder import (
    Params,
    abstract_params,
    forward,
    forward_cached,
    init_cache,
    init_params,
    logits,
    output_embedding,
)
from rdro_jax.models.families import FAMILIES
from rdro_jax.models.hf import load_model, load_model_config
from rdro_jax.models.lora import Adapters, LoraConfig, abstract_adapters, adapt, init_adapters, merge
from rdro_jax.models.peft import load_adapter_config, load_adapters, save_adapters
from rdro_jax.models.presets import load_preset
from rdro_jax.models.save import save_model

__all__ = [
    "FAMILIES",
    "Adapters",
    "Cache",
    "LoraConfig",
    "MoEConfig",
    "ModelConfig",
    "Params",
    "Remat",
    "RopeConfig",
    "abstract_adapters",
    "abstract_params",
    "adapt",
    "forward",
    "forward_cached",
    "init_adapters",
    "init_cache",
    "init_params",
    "load_adapter_config",
    "load_adapters",
    "load_model",
    "load_model_config",
    "load_preset",
    "logits",
    "merge",
    "output_embedding",
    "save_adapters",
    "save_model",
]
