"""Supervised fine-tuning: maximum likelihood on completions. Fits the reference to the mixture before RDRO."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdro_jax.losses.base import LossBase, LossInputs, Weighted


def sft(policy_logps: Float[Array, "examples"], lengths: Int[Array, "examples"]) -> Float[Array, "examples"]:
    """Negative log-likelihood per completion token of every example, in nats per token; 0 for an empty example.

    Weighted by `lengths` the batch loss is the token-weighted mean over the global batch.

    Source: maximum likelihood; as a stage before alignment Ouyang et al. 2022, arXiv:2203.02155.

    >>> import jax.numpy as jnp
    >>> policy, tokens = jnp.array([-12.0, -9.5]), jnp.array([6, 4])
    >>> [f"{value:.3f}" for value in sft(policy, tokens)]  # nats per token
    ['2.000', '2.375']
    """
    return -policy_logps / jnp.maximum(lengths, 1)


@dataclass(frozen=True)
class SFT(LossBase):
    """Token-weighted negative log-likelihood of completions."""

    needs_reference: ClassVar[bool] = False

    name: Literal["sft"] = "sft"
    on: Literal["all", "desirable"] = "all"
    """Which completions to fit: all of them (the mixture RDRO's reference stands for), or the desirable ones."""

    def __call__(self, x: LossInputs) -> Weighted:
        """Return nats per token, weighted by tokens."""
        chosen = jnp.where(x.desirable, 1.0, 0.0) if self.on == "desirable" else 1.0
        return Weighted(sft(x.policy_logps, x.lengths), x.weight * chosen * x.lengths)
