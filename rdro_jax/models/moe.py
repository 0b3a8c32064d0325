"""The routed feed-forward layer: each token goes to the few experts its router scores highest. No token is dropped.

Source: Shazeer et al. 2017 (arXiv:1701.06538); routing as in Qwen 3 MoE (arXiv:2505.09388).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from rdro_jax.models.config import ModelConfig, MoEConfig


class RoutedMLP(nn.Module):
    """Weighted sum of the chosen experts' gated feed-forward layers."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows seq d_model"]) -> Float[Array, "rows seq d_model"]:
        c, moe = self.config, self.config.moe
        assert moe is not None, "a routed layer is made for a config with experts only"
        tokens = x.reshape(-1, c.d_model)
        router = nn.Dense(
            moe.n_experts, use_bias=False, dtype=c.compute_dtype, kernel_init=nn.initializers.normal(0.02), name="gate"
        )
        weights, chosen = route(router(tokens), moe)
        return Experts(c, name="experts")(tokens, weights, chosen).reshape(x.shape)


def route(
    scores: Float[Array, "tokens experts"], moe: MoEConfig
) -> tuple[Float[Array, "tokens active"], Int[Array, "tokens active"]]:
    """Weight and index of each token's experts, likeliest first; softmax over all experts, in float32."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32)), moe.n_active)
    return (weights / weights.sum(axis=-1, keepdims=True) if moe.normalise else weights), chosen


class Experts(nn.Module):
    """All experts of one layer, their matrices stacked on axis 0."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "tokens d_model"],
        weights: Float[Array, "tokens active"],
        chosen: Int[Array, "tokens active"],
    ) -> Float[Array, "tokens d_model"]:
        c, moe = self.config, self.config.moe
        assert moe is not None, "experts are made for a config with experts only"
        # Visits laid in the order of their expert: each expert's matrix product is then over one run of rows.
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        counts = jnp.bincount(chosen.reshape(-1), length=moe.n_experts)
        visits = tokens[order // moe.n_active]

        def product(name: str, x: Array, width: int) -> Array:
            matrices = ExpertKernel((moe.n_experts, x.shape[-1], width), name=name)()
            return jax.lax.ragged_dot(x, matrices.astype(c.compute_dtype), counts)

        gated = nn.silu(product("gate_proj", visits, moe.d_expert)) * product("up_proj", visits, moe.d_expert)
        answers = product("down_proj", gated, c.d_model) * weights.reshape(-1)[order, None].astype(gated.dtype)
        return jnp.zeros_like(tokens).at[order // moe.n_active].add(answers)


class ExpertKernel(nn.Module):
    """The stacked matrices of one product, under the name `kernel` as everywhere."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "experts inputs outputs"]:
        return self.param("kernel", nn.initializers.normal(0.02), self.shape)
