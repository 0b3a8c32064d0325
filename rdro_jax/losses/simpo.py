"""Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Float, Int

from rdro_jax.losses.base import LossInputs
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PairedLoss, check_not_negative
from rdro_jax.losses.sft import sft


def simpo(
    chosen_logps: Float[Array, "pairs"],
    rejected_logps: Float[Array, "pairs"],
    chosen_lengths: Int[Array, "pairs"],
    rejected_lengths: Int[Array, "pairs"],
    *,
    beta: Scalar = 2.0,
    gamma: Scalar = 0.5,
) -> Float[Array, "pairs"]:
    """SimPO loss of every pair, in nats; the batch loss is the mean.

    With w and l the mean log-probs per token of chosen and rejected: -log sigmoid(beta (w - l) - gamma).

    Source: Meng et al. 2024, arXiv:2405.14734, equation 6.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.array([-10.2, -8.0]), jnp.array([-14.1, -9.5])  # nats, two pairs of completions
    >>> tokens = jnp.array([6, 4])
    >>> [f"{value:.3f}" for value in simpo(chosen, rejected, tokens, tokens)]
    ['0.371', '0.576']
    """
    margin = sft(rejected_logps, rejected_lengths) - sft(chosen_logps, chosen_lengths)
    return jax.nn.softplus(gamma - beta * margin)


@dataclass(frozen=True)
class SimPO(PairedLoss):
    """Simple preference optimisation from pairs, without a reference (arXiv:2405.14734)."""

    needs_reference: ClassVar[bool] = False

    traced: ClassVar[tuple[str, ...]] = (*PairedLoss.traced, "gamma")

    name: Literal["simpo"] = "simpo"
    beta: float = 2.0
    """Scale of the reward, per nat per token."""
    gamma: float = 0.5
    """Margin by which the chosen reward is to exceed the rejected one, after scaling by beta."""

    def __post_init__(self):
        super().__post_init__()
        check_not_negative("gamma", self.gamma)

    def of_pairs(self, chosen: LossInputs, rejected: LossInputs) -> Float[Array, "pairs"]:
        """Return the loss of each pair."""
        return simpo(
            chosen.policy_logps,
            rejected.policy_logps,
            chosen.lengths,
            rejected.lengths,
            beta=self.beta,
            gamma=self.gamma,
        )
