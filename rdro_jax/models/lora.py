"""Low-rank adapters: small trained matrices beside frozen ones, as a function over parameters.

Source: Hu et al. 2021 (arXiv:2106.09685). Names and meanings of the settings are PEFT's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from pydantic import Field, PositiveInt

from rdro_jax.errors import ConfigError
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.decoder import Params, abstract_params
from rdro_jax.models.weights import flatten, unflatten

Adapters = dict[str, Any]
"""Nested dicts like the parameters: `lora_A` [layers, in, r] and `lora_B` [layers, r, out] in place of each kernel."""


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices get an adapter, of which rank, and how strongly it counts."""

    r: PositiveInt = 16
    """Rank of every adapter."""
    lora_alpha: Annotated[float, Field(gt=0)] = 32.0
    """Adapters count `lora_alpha / r` times."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs set to 0 at random in training."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    """Last names of the matrices that get an adapter."""
    use_rslora: bool = False
    """Adapters count `lora_alpha / sqrt(r)` times (rank-stabilised)."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """PEFT folder to start from, made with the settings above; null starts from an adapter that changes nothing."""

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def abstract_adapters(model: ModelConfig, lora: LoraConfig) -> Adapters:
    """Shapes of the adapters of a model, float32 whatever the type of its parameters.

    Raises:
        ConfigError: a target is no matrix of the model's layers, or one of its experts.
    """
    flat: dict[str, jax.ShapeDtypeStruct] = {}
    for module, (layers, inputs, outputs) in _targets(model, lora):
        flat[f"{module}/lora_A"] = jax.ShapeDtypeStruct((layers, inputs, lora.r), jnp.float32)
        flat[f"{module}/lora_B"] = jax.ShapeDtypeStruct((layers, lora.r, outputs), jnp.float32)
    return unflatten(flat)


def _targets(model: ModelConfig, lora: LoraConfig) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Path and shape of every kernel that gets an adapter."""
    kernels = {p.removesuffix("/kernel"): s.shape for p, s in flatten(abstract_params(model)).items() if "/kernel" in p}
    dense = {module: shape for module, shape in kernels.items() if len(shape) == 3 and not module.endswith("mlp/gate")}
    known = sorted({module.rpartition("/")[2] for module in dense})
    for target in lora.target_modules:
        if target not in known:
            raise ConfigError(f"model.lora.target_modules: {target!r} is no matrix to adapt here; there are {known}")
    for module, shape in dense.items():
        if module.rpartition("/")[2] in lora.target_modules:
            yield module, shape


def init_adapters(model: ModelConfig, lora: LoraConfig, key: Array) -> Adapters:
    """Adapters that change nothing yet: `lora_A` uniform within 1 / sqrt(inputs) as PEFT draws it, `lora_B` zero."""

    def draw(number: int, path: str, shape: tuple[int, ...]) -> Array:
        if path.endswith("lora_B"):
            return jnp.zeros(shape)
        bound = shape[1] ** -0.5
        return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)

    shapes = flatten(abstract_adapters(model, lora))
    return unflatten({path: draw(n, path, leaf.shape) for n, (path, leaf) in enumerate(sorted(shapes.items()))})


def adapt(params: Params, adapters: Adapters, lora: LoraConfig, key: Array | None = None) -> Params:
    """Parameters of base and adapters together, as `forward` takes them; nothing of the base is copied or changed.

    With a key, as in training, `lora_dropout` of an adapter's inputs are dropped.
    """
    flat = flatten(adapters)
    for number, module in enumerate(sorted(path.rpartition("/")[0] for path in flat if path.endswith("lora_A"))):
        flat[f"{module}/lora_B"] = flat[f"{module}/lora_B"] * lora.scale
        if key is not None and lora.lora_dropout > 0:
            layers = flat[f"{module}/lora_B"].shape[0]
            flat[f"{module}/lora_key"] = jax.random.split(jax.random.fold_in(key, number), layers)
            flat[f"{module}/lora_dropout"] = jnp.full(layers, lora.lora_dropout)
    return unflatten(flatten(params) | flat)


def merge(params: Params, adapters: Adapters, lora: LoraConfig) -> Params:
    """The base with its adapters added to its matrices, in the base's types; the product is taken in float32."""
    flat, small = flatten(params), flatten(adapters)
    for path in small:
        module, _, name = path.rpartition("/")
        if name == "lora_A":
            kernel = flat[f"{module}/kernel"]
            change = jnp.einsum("lir,lro->lio", small[path], small[f"{module}/lora_B"], precision="highest")
            flat[f"{module}/kernel"] = (kernel.astype(jnp.float32) + lora.scale * change).astype(kernel.dtype)
    return unflatten(flat)
