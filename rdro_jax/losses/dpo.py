"""Direct preference optimisation (arXiv:2305.18290) and the losses that share its shape."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdro_jax.losses.base import LossInputs
from rdro_jax.losses.numerics import Scalar
from rdro_jax.losses.preference import PairedLoss, check

Kind = Literal["sigmoid", "robust", "ipo", "hinge", "nca_pair", "sppo_hard"]
SMOOTHED = ("sigmoid", "robust")
"""Kinds that read `label_smoothing`."""


def dpo(
    chosen_logps: Float[Array, "pairs"],
    rejected_logps: Float[Array, "pairs"],
    reference_chosen_logps: Float[Array, "pairs"],
    reference_rejected_logps: Float[Array, "pairs"],
    *,
    beta: Scalar = 0.1,
    kind: Kind = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Int[Array, "pairs"] | None = None,
    rejected_lengths: Int[Array, "pairs"] | None = None,
) -> Float[Array, "pairs"]:
    """DPO loss of every pair; the batch loss is the mean.

    With c and d the log-ratios policy - reference of chosen and rejected, D = c - d, eps = `label_smoothing` the
    probability that a pair stands the wrong way round, and L(x) = softplus(-beta x) = -log sigmoid(beta x), in nats but
    for the squares and the hinge:

        sigmoid     (1 - eps) L(D) + eps L(-D)                        conservative DPO for eps > 0
        robust      ((1 - eps) L(D) - eps L(-D)) / (1 - 2 eps)        unbiased under the label noise eps
        ipo         (D - 1 / (2 beta))^2                              c and d per token: needs the lengths
        hinge       relu(1 - beta D)
        nca_pair    L(c) + (L(-c) + L(-d)) / 2
        sppo_hard   (c - 1 / (2 beta))^2 + (d + 1 / (2 beta))^2

    Raises:
        ValueError: a kind there is not, or "ipo" without the lengths.

    Source: sigmoid: Rafailov et al. 2023, arXiv:2305.18290; robust: Chowdhury et al. 2024, arXiv:2403.00409; ipo: Azar
    et al. 2023, arXiv:2310.12036; hinge: Zhao et al. 2023, arXiv:2305.10425; nca_pair: Chen et al. 2024,
    arXiv:2402.05369; sppo_hard: Wu et al. 2024, arXiv:2405.00675. Differs from Azar et al. in the means over tokens,
    as TRL takes them.

    >>> import jax.numpy as jnp
    >>> chosen, rejected = jnp.array([-10.2, -8.0]), jnp.array([-14.1, -9.5])  # nats, two pairs of completions
    >>> reference_chosen, reference_rejected = jnp.array([-10.9, -8.0]), jnp.array([-13.6, -9.5])
    >>> [f"{value:.3f}" for value in dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.1)]
    ['0.635', '0.693']
    """
    chosen = chosen_logps - reference_chosen_logps
    rejected = rejected_logps - reference_rejected_logps
    loss = lambda log_ratio: jax.nn.softplus(-beta * log_ratio)  # noqa: E731
    match kind:
        case "sigmoid":
            return (1 - label_smoothing) * loss(chosen - rejected) + label_smoothing * loss(rejected - chosen)
        case "robust":
            right = (1 - label_smoothing) * loss(chosen - rejected)
            return (right - label_smoothing * loss(rejected - chosen)) / (1 - 2 * label_smoothing)
        case "ipo":
            if chosen_lengths is None or rejected_lengths is None:
                raise ValueError("chosen_lengths, rejected_lengths: got None, wanted the token counts for kind 'ipo'")
            margin = chosen / jnp.maximum(chosen_lengths, 1) - rejected / jnp.maximum(rejected_lengths, 1)
            return (margin - 0.5 / beta) ** 2
        case "hinge":
            return jax.nn.relu(1 - beta * (chosen - rejected))
        case "nca_pair":
            return loss(chosen) + 0.5 * (loss(-chosen) + loss(-rejected))
        case "sppo_hard":
            return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2
        case _:
            raise ValueError(f"kind: got {kind!r}, wanted sigmoid, robust, ipo, hinge, nca_pair or sppo_hard")


@dataclass(frozen=True)
class DPO(PairedLoss):
    """Direct preference optimisation from pairs (arXiv:2305.18290)."""

    name: Literal["dpo"] = "dpo"
    kind: Kind = "sigmoid"
    """Shape of the loss; sigmoid is DPO's own."""
    beta: float = 0.1
    """Inverse temperature of the reward, per nat."""
    label_smoothing: float = 0.0
    """Probability that a pair stands the wrong way round, in [0, 0.5); read by sigmoid and robust."""

    def __post_init__(self):
        super().__post_init__()
        smoothing = self.label_smoothing
        check("label_smoothing", smoothing, 0 <= smoothing < 0.5, "a number from 0 to below 0.5")
        read = not smoothing or self.kind in SMOOTHED
        check("label_smoothing", smoothing, read, f"0: kind {self.kind} has none; or loss.kind: sigmoid or robust")

    def of_pairs(self, chosen: LossInputs, rejected: LossInputs) -> Float[Array, "pairs"]:
        """Return the loss of each pair."""
        return dpo(
            chosen.policy_logps,
            rejected.policy_logps,
            chosen.reference_logps,
            rejected.reference_logps,
            beta=self.beta,
            kind=self.kind,
            label_smoothing=self.label_smoothing,
            chosen_lengths=chosen.lengths,
            rejected_lengths=rejected.lengths,
        )
