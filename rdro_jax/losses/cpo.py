"""Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Float

from rdro_jax.losses.base import LossInputs
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PairedLoss


def cpo(
    chosen_logps: Float[Array, "pairs"], rejected_logps: Float[Array, "pairs"], *, beta: Scalar = 0.1
) -> Float[Array, "pairs"]:
    """The contrastive term of CPO, of every pair, in nats: -log sigmoid(beta (chosen_logps - rejected_logps)).

    DPO with a uniform reference. CPO's other term, the likelihood of the chosen, is `sft` of the chosen.

    Source: Xu et al. 2024, arXiv:2401.08417, equation 5.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.array([-10.2, -8.0]), jnp.array([-14.1, -9.5])  # nats, two pairs of completions
    >>> [f"{value:.3f}" for value in cpo(chosen, rejected)]
    ['0.517', '0.621']
    """
    return jax.nn.softplus(-beta * (chosen_logps - rejected_logps))


@dataclass(frozen=True)
class CPO(PairedLoss):
    """Contrastive preference optimisation from pairs, without a reference (arXiv:2401.08417)."""

    needs_reference: ClassVar[bool] = False

    name: Literal["cpo"] = "cpo"
    sft_weight: float = 1.0
    """Weight of the chosen completion's negative log-likelihood, in nats per token."""

    def of_pairs(self, chosen: LossInputs, rejected: LossInputs) -> Float[Array, "pairs"]:
        """Return the loss of each pair."""
        return cpo(chosen.policy_logps, rejected.policy_logps, beta=self.beta)
