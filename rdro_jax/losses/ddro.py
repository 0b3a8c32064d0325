"""Direct density ratio optimisation (Higuchi and Suzuki 2025, arXiv:2505.07558)."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.losses.base import LossInputs, Weighted
from rdro_jax.losses.numerics import Scalar, log, log1mexp
from rdro_jax.losses.preference import RatioLoss, check, sampling_weights


def ddro(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    *,
    alpha: Scalar = 0.5,
    epsilon: float = 0.1,
    sampling_alpha: Scalar | None = None,
) -> Float[Array, "examples"]:
    """DDRO loss of every example, in nats; the batch loss is the mean.

    The likelihood of the labels under P(+ | x, y) = alpha r, with s = policy_logps - reference_logps, r = exp(s):

        -log(alpha r) on preferred examples,   -log(1 - alpha r) on others

    whose mean over examples drawn at the rate `alpha` (or at `sampling_alpha`, for which it then corrects) is
    -alpha E+[log(alpha r)] - (1 - alpha) E-[log(1 - alpha r)].

    `epsilon` = 0 is the plain form: infinite at the pole r = 1 / alpha, NaN in value and gradient above it. `epsilon`
    in (0, 1) continues the second term by its tangent above s = log((1 - epsilon) / alpha): finite everywhere.

    Source: Higuchi and Suzuki 2025, arXiv:2505.07558, for alpha = 1/2, times 1/2 for the mean over classes. Differs by
    any other alpha and by the tangent.

    >>> import jax.numpy as jnp
    >>> policy, reference = jnp.array([-10.2, -14.1]), jnp.array([-10.9, -13.6])  # nats, one for each completion
    >>> [f"{value:.3f}" for value in ddro(policy, reference, jnp.array([True, False]), alpha=0.4)]
    ['0.216', '0.278']
    """
    log_ratio = policy_logps - reference_logps
    log_share = log_ratio + log(alpha)  # log P(+ | x, y)
    # Preferred examples take no part in the second term: above the pole its NaN would reach their gradient.
    log_share_of_others = jnp.where(desirable, -1.0, log_share)
    other = _plain(log_share_of_others) if epsilon == 0 else _stabilised(log_share_of_others, epsilon)
    return jnp.where(desirable, -log_share, other) * sampling_weights(desirable, alpha, sampling_alpha)


def _plain(log_share):
    """-log(1 - exp(log_share)); NaN above 0, where it has no value, so that divergence is seen at once."""
    inside = log_share <= 0
    below_pole = -log1mexp(-jnp.where(inside, log_share, -1.0))
    return jnp.where(inside, below_pole, jnp.nan * jnp.where(inside, 1.0, log_share))


def _stabilised(log_share, epsilon):
    """-log(1 - exp(log_share)) up to log(1 - epsilon), its tangent above: the slope is (1 - epsilon) / epsilon."""
    knee = math.log1p(-epsilon)
    slope = (1 - epsilon) / epsilon
    return -log1mexp(-jnp.minimum(log_share, knee)) + slope * jnp.maximum(log_share - knee, 0.0)


@dataclass(frozen=True)
class DDRO(RatioLoss):
    """Direct density ratio optimisation from unpaired data (arXiv:2505.07558)."""

    name: Literal["ddro"] = "ddro"
    alpha: float | Literal["data"] = 0.5
    """Share of preferred examples among samples of the reference, in (0, 1); the paper's is 0.5."""
    epsilon: float = 0.1
    """Distance from the pole 1 - alpha r = 0 at which the loss becomes linear, in [0, 1); 0 is the paper's form."""

    def __post_init__(self):
        super().__post_init__()
        check("epsilon", self.epsilon, 0 <= self.epsilon < 1, "a number from 0 (the plain form) to below 1")

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the loss of each example, weighted by its own weight."""
        values = ddro(
            x.policy_logps,
            x.reference_logps,
            x.desirable,
            alpha=self.known_alpha(),
            epsilon=self.epsilon,
            sampling_alpha=self.sampling_alpha,
        )
        return self.unpaired(values, x)
