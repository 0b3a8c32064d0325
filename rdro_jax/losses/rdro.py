"""Relative density ratio optimisation (Takahashi et al. 2026, arXiv:2604.04410)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.errors import ConfigError
from rdro_jax.losses.base import LossInputs, Weighted

Generator = Literal["logistic", "kl", "least_squares"]
Estimator = Literal["per_example", "class_mean", "batch_mean"]


def rdro(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    *,
    alpha: float | Float[Array, ""],
    generator: Generator = "logistic",
    estimator: Estimator = "per_example",
    prompt_alpha: Float[Array, "examples"] | None = None,
) -> Float[Array, "examples"]:
    """RDRO loss of every example, in nats; the batch loss is the mean.

    With s = policy_logps - reference_logps and r = exp(s), minimises the Bregman divergence from the relative density
    ratio r* = p+ / (alpha p+ + (1 - alpha) p-) to r, under the mixture the reference models:

        J = E+[A(s)] + alpha E+[H(s)] + (1 - alpha) E-[H(s)],   logistic: A = softplus(-s), H = softplus(s)

    `alpha` is the share of preferred examples, in (0, 1). `prompt_alpha` gives it per example where it varies with the
    prompt; it enters as the offset s + log(prompt_alpha / alpha).

    `estimator`: "per_example" is H(s) + 1[desirable] A(s) / alpha, unbiased for any batch; "class_mean" divides each
    class by its own count in these arrays (biased when a class is missing); "batch_mean" averages alpha-weighted class
    terms over the batch, counts the class prior twice and is *inconsistent* unless alpha = 1/2: offered for comparison
    with implementations that do so.

    Source: Takahashi et al. 2026, arXiv:2604.04410 (logistic generator, class terms). Differs from the paper in the
    default estimator, whose expectation is the paper's objective, and in offering other Bregman generators.
    """
    log_ratio = policy_logps - reference_logps
    if prompt_alpha is not None:
        log_ratio = log_ratio + jnp.log(prompt_alpha) - jnp.log(alpha)
    attract, spread = _bregman_terms(log_ratio, alpha, generator)
    match estimator:
        case "per_example":
            return spread + jnp.where(desirable, attract / alpha, 0.0)
        case "class_mean":
            preferred = jnp.sum(desirable)
            per_class = jnp.where(desirable, preferred, desirable.size - preferred)
            return jnp.where(desirable, attract + alpha * spread, (1 - alpha) * spread) * desirable.size / per_class
        case "batch_mean":
            return jnp.where(desirable, attract + alpha * spread, (1 - alpha) * spread)
        case _:
            raise ValueError(f"estimator: got {estimator!r}, wanted per_example, class_mean or batch_mean")


def _bregman_terms(log_ratio, alpha, generator):
    """A(s) and H(s) of a generator: the term that attracts preferred examples and the one that bounds the ratio."""
    match generator:
        case "logistic":
            return jax.nn.softplus(-log_ratio), jax.nn.softplus(log_ratio)
        case "kl":
            return -log_ratio, _lin_exp(log_ratio, alpha, 1.0)
        case "least_squares":
            return -_lin_exp(log_ratio, alpha, 1.0), 0.5 * _lin_exp(log_ratio, alpha, 2.0)
        case _:
            raise ValueError(f"generator: got {generator!r}, wanted logistic, kl or least_squares")


def _lin_exp(log_ratio, alpha, power):
    """exp(power * s), continued by its tangent above log(1/alpha) + 1/2.

    The minimiser is unchanged, for r* <= 1/alpha; without it the exponential overflows float32 at s = 88.
    """
    knee = 0.5 - jnp.log(alpha)
    return jnp.exp(power * jnp.minimum(log_ratio, knee)) + power * jnp.exp(power * knee) * jax.nn.relu(log_ratio - knee)


@dataclass(frozen=True)
class RDRO:
    """Relative density ratio optimisation from unpaired data (arXiv:2604.04410)."""

    needs_reference: ClassVar[bool] = True

    name: Literal["rdro"] = "rdro"
    alpha: float | Literal["data"] = "data"
    """Share of preferred examples among samples of the reference, in (0, 1); "data" takes the training share."""
    generator: Generator = "logistic"
    """Bregman generator; logistic is the paper's."""

    def __post_init__(self):
        if self.alpha != "data" and not 0 < self.alpha < 1:
            raise ConfigError(
                f"loss.alpha: got {self.alpha}; wanted a number between 0 and 1, both excluded, or 'data' "
                "(at 0 the preferred class has no share, at 1 nothing is learnt)"
            )

    def __call__(self, x: LossInputs) -> Weighted:
        """Return the per-example estimator of the objective, weighted by the examples' own weights."""
        assert self.alpha != "data", "alpha is resolved from the data before the step is built"
        values = rdro(x.policy_logps, x.reference_logps, x.desirable, alpha=self.alpha, generator=self.generator)
        return Weighted(values, x.weight)
