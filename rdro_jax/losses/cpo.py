"""Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
from jaxtyping import Array, Float

from rdro_jax.losses.base import LossInputs, Weighted
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PreferenceLoss, check_positive, split_pairs


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
class CPO(PreferenceLoss):
    """Contrastive preference optimisation from pairs, without a reference (arXiv:2401.08417)."""

    needs_reference: ClassVar[bool] = False
    paired: ClassVar[bool] = True

    traced: ClassVar[tuple[str, ...]] = ("beta",)

    name: Literal["cpo"] = "cpo"
    beta: float = 0.1
    """Inverse temperature of the contrast, per nat."""
    sft_weight: float = 1.0
    """Weight of the chosen completion's negative log-likelihood, in nats per token."""

    def __post_init__(self):
        super().__post_init__()
        check_positive("beta", self.beta)

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the loss of each pair on its members, weighted once per pair."""
        chosen, rejected = split_pairs(x)
        return self.of_pairs(cpo(chosen.policy_logps, rejected.policy_logps, beta=self.beta), chosen, rejected)
