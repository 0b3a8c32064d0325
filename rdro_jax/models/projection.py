"""A matrix product of the decoder, with a low-rank addition where the parameters hold one."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from rdro_jax.models.config import ModelConfig


class Projection(nn.Module):
    """`x @ kernel + bias` in the compute type, with Hugging Face's initial spread.

    Where `lora.adapt` has put `lora_A` and `lora_B` beside the kernel, `(x @ lora_A) @ lora_B` is added; the kernel
    itself is never changed, so that no gradient of its size exists. Source: Hu et al. 2021 (arXiv:2106.09685).
    """

    config: ModelConfig
    width: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch width"]:
        kind = self.config.compute_dtype
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.width))
        y = jnp.dot(x, kernel.astype(kind))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.width,)).astype(kind)
        if not self.has_variable("params", "lora_A"):
            return y
        down, up = (self.get_variable("params", name).astype(kind) for name in ("lora_A", "lora_B"))
        return y + jnp.dot(jnp.dot(self._dropped(x), down), up)

    def _dropped(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch inputs"]:
        """`x` with numbers set to 0 at random, the rest scaled to keep the mean, where the parameters hold a key."""
        if not self.has_variable("params", "lora_key"):
            return x
        kept = 1.0 - self.get_variable("params", "lora_dropout")
        mask = jax.random.bernoulli(self.get_variable("params", "lora_key"), kept, x.shape)
        return jnp.where(mask, x / kept.astype(x.dtype), 0)
