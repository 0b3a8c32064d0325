"""Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdro_jax.losses.base import LossInputs
from rdro_jax.losses.numerics import Scalar, log1mexp
from rdro_jax.losses.preference import PairedLoss
from rdro_jax.losses.sft import sft


def orpo(
    chosen_logps: Float[Array, "pairs"],
    rejected_logps: Float[Array, "pairs"],
    chosen_lengths: Int[Array, "pairs"],
    rejected_lengths: Int[Array, "pairs"],
    *,
    beta: Scalar = 0.1,
) -> Float[Array, "pairs"]:
    """The odds ratio term of ORPO, of every pair, in nats.

    With w and l the mean log-probs per token of chosen and rejected, and log odds(w) = w - log(1 - exp(w)):

        -beta log sigmoid(log odds(w) - log odds(l))

    ORPO's other term, the likelihood of the chosen, is `sft` of the chosen. `beta` is the paper's lambda.

    Source: Hong et al. 2024, arXiv:2403.07691, equations 4 to 7.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.array([-10.2, -8.0]), jnp.array([-14.1, -9.5])  # nats, two pairs of completions
    >>> tokens = jnp.array([6, 4])
    >>> [f"{value:.3f}" for value in orpo(chosen, rejected, tokens, tokens)]
    ['0.039', '0.050']
    """
    ratio = _log_odds(sft(chosen_logps, chosen_lengths)) - _log_odds(sft(rejected_logps, rejected_lengths))
    return beta * jax.nn.softplus(-ratio)


def _log_odds(nats_per_token):
    """log(p / (1 - p)) of p = exp(-nats_per_token); held finite where p is 1 to float32, as it is for filler."""
    nats_per_token = jnp.maximum(nats_per_token, 1e-6)
    return -nats_per_token - log1mexp(nats_per_token)


@dataclass(frozen=True)
class ORPO(PairedLoss):
    """Odds ratio preference optimisation from pairs, without a reference (arXiv:2403.07691)."""

    needs_reference: ClassVar[bool] = False

    name: Literal["orpo"] = "orpo"
    beta: float = 0.1
    """Weight of the odds ratio term, the paper's lambda."""
    sft_weight: float = 1.0
    """Weight of the chosen completion's negative log-likelihood, in nats per token."""

    def of_pairs(self, chosen: LossInputs, rejected: LossInputs) -> Float[Array, "pairs"]:
        """Return the loss of each pair."""
        return orpo(chosen.policy_logps, rejected.policy_logps, chosen.lengths, rejected.lengths, beta=self.beta)
