"""What a batch or a held-out set says about a ratio: pure functions of log-ratios, labels and weights.

Throughout, s = `log_ratio` = policy_logps - reference_logps in nats, r = exp(s), and examples of weight 0 count for
nothing. A mean over nothing is NaN. The optimum of the ratio losses is r = p+ / (alpha p+ + (1 - alpha) p-), at which
alpha r is P(+ | x, y).

>>> log_ratio = jnp.log(jnp.array([1.5, 1.5, 0.5, 0.75]))  # two liked completions, then two others
>>> desirable, weight = jnp.array([True, True, False, False]), jnp.ones(4)
>>> f"{alpha_hat(log_ratio, desirable, weight):.3f}, {effective_share(log_ratio, weight):.3f}"
'0.429, 0.850'
>>> print(posterior(log_ratio, alpha=0.4).round(3))  # P(+ | x, y), as the policy has it
[0.6 0.6 0.2 0.3]
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdro_jax.losses.numerics import Scalar


class ByClass(NamedTuple):
    """One figure per class."""

    preferred: Float[Array, "..."]
    """Of desirable or chosen examples."""
    other: Float[Array, "..."]
    """Of the others."""


def mean(values: Float[Array, "examples"], weight: Float[Array, "examples"]) -> Float[Array, ""]:
    """Weighted mean, in the unit of `values`; NaN where no example has weight."""
    # where, not multiplication: what filler holds must not reach the sum, infinity included.
    return jnp.sum(jnp.where(weight > 0, values * weight, 0.0)) / jnp.sum(weight)


def class_means(
    values: Float[Array, "examples"], desirable: Bool[Array, "examples"], weight: Float[Array, "examples"]
) -> ByClass:
    """Mean of each class, E+ and E-."""
    return ByClass(*(mean(values, jnp.where(member, weight, 0.0)) for member in (desirable, ~desirable)))


def class_quantiles(
    values: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    probabilities: tuple[float, ...] = (0.05, 0.95),
) -> ByClass:
    """Quantiles of each class over the examples present, whatever their weight: one figure per probability."""
    quantiles = lambda member: jnp.nanquantile(  # noqa: E731
        jnp.where(member & (weight > 0), values, jnp.nan), jnp.asarray(probabilities)
    )
    return ByClass(quantiles(desirable), quantiles(~desirable))


def over_bound_share(
    log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"], *, alpha: Scalar
) -> Float[Array, ""]:
    """Share of examples with r > 1 / alpha, which no relative ratio reaches.

    Source of the bound: Yamada et al. 2011, arXiv:1106.4729.
    """
    return mean(jnp.where(log_ratio > -jnp.log(alpha), 1.0, 0.0), weight)


def normalisation(
    log_ratio: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    alpha: Scalar,
) -> Float[Array, ""]:
    """alpha E+[r] + (1 - alpha) E-[r], a share: 1 where the reference is the data's mixture, whatever the policy."""
    preferred, other = class_means(jnp.exp(log_ratio), desirable, weight)
    return alpha * preferred + (1 - alpha) * other


def alpha_hat(
    log_ratio: Float[Array, "examples"], desirable: Bool[Array, "examples"], weight: Float[Array, "examples"]
) -> Float[Array, ""]:
    """The share alpha at which `normalisation` is 1: (1 - E-[r]) / (E+[r] - E-[r]).

    For held-out examples of any policy that tells the classes apart; useless where the two means are near each other,
    and NaN where they differ by rounding only.
    """
    preferred, other = class_means(jnp.exp(log_ratio), desirable, weight)
    gap = preferred - other
    return jnp.where(_is_rounding(gap, preferred + other), jnp.nan, (1 - other) / gap)


def _is_rounding(difference: Float[Array, ""], of: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a difference is no more than sums of numbers as large as `of` are off by."""
    return jnp.abs(difference) <= 64 * jnp.finfo(difference.dtype).eps * jnp.abs(of)


def effective_share(log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"]) -> Float[Array, ""]:
    """Effective sample size as a share of the sample size, (sum r)^2 / (N sum r^2), of examples weighted by r.

    In (0, 1]. At the optimum it is at least alpha: below alpha the policy has overshot.

    Source: Kish 1965, Survey Sampling.
    """
    ratio = _scaled_ratio(log_ratio, weight)
    return mean(ratio, weight) ** 2 / mean(ratio**2, weight)


def off_policy_preferred_rate(
    log_ratio: Float[Array, "examples"], desirable: Bool[Array, "examples"], weight: Float[Array, "examples"]
) -> Float[Array, ""]:
    """Share of preferred completions that the policy would draw: sum r 1[+] / sum r, over samples of the reference.

    As trustworthy as `effective_share` is large.

    Source: self-normalised importance sampling; Hesterberg 1995, Weighted average importance sampling.
    """
    return _under_policy(jnp.where(desirable, 1.0, 0.0), log_ratio, weight)


def _under_policy(
    values: Float[Array, "examples"], log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"]
) -> Float[Array, ""]:
    """Mean of `values` under the policy from samples of the reference, sum r values / sum r."""
    ratio = _scaled_ratio(log_ratio, weight)
    return mean(ratio * values, weight) / mean(ratio, weight)


def _scaled_ratio(log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"]) -> Float[Array, "examples"]:
    """r over the largest r, for figures in which a common factor cancels: no square of it overflows."""
    return jnp.exp(log_ratio - jnp.max(jnp.where(weight > 0, log_ratio, -jnp.inf)))


def posterior(log_ratio: Float[Array, "examples"], *, alpha: Scalar) -> Float[Array, "examples"]:
    """P(+ | x, y) as the policy has it, a probability: min(alpha r, 1).

    Source: Higuchi and Suzuki 2025, arXiv:2505.07558, for alpha = 1/2.
    """
    return jnp.exp(jnp.minimum(log_ratio + jnp.log(alpha), 0.0))


def brier(
    log_ratio: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    alpha: Scalar,
) -> Float[Array, ""]:
    """Mean squared error of `posterior` as a forecast of the label, without unit.

    Where r <= 1 / alpha it is 2 alpha^2 J + alpha, J the least-squares objective E[r^2] / 2 - E+[r].

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    return mean((posterior(log_ratio, alpha=alpha) - desirable) ** 2, weight)


class Reliability(NamedTuple):
    """Forecasts in equal bins of [0, 1]; NaN where a bin is empty."""

    forecast: Float[Array, "bins"]
    """Mean posterior."""
    observed: Float[Array, "bins"]
    """Share of preferred examples."""
    weight: Float[Array, "bins"]
    """Sum of weights."""


def reliability(
    log_ratio: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    alpha: Scalar,
    bins: int = 10,
) -> Reliability:
    """Reliability curve of `posterior`, in probabilities: what was forecast against what was observed.

    Source: Murphy and Winkler 1977, Reliability of subjective probability forecasts of precipitation and temperature.
    """
    forecast = posterior(log_ratio, alpha=alpha)
    bin_of = jnp.minimum(jnp.floor(forecast * bins).astype(int), bins - 1)
    total = lambda values: jnp.zeros(bins).at[bin_of].add(jnp.where(weight > 0, values * weight, 0.0))  # noqa: E731
    weights = total(jnp.ones_like(forecast))
    return Reliability(total(forecast) / weights, total(jnp.where(desirable, 1.0, 0.0)) / weights, weights)


def calibration_error(curve: Reliability) -> Float[Array, ""]:
    """Expected calibration error, a probability: mean over examples of |forecast - observed| of their bin.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    return mean(jnp.abs(curve.forecast - curve.observed), curve.weight)


def loss_floor(alpha: float) -> float:
    """Least value of the logistic objective, in nats, reached where p+ and p- do not overlap; the start is 2 log 2."""
    return (1 + alpha) * math.log1p(alpha) - alpha * math.log(alpha)


def kullback_leibler(
    log_ratio: Float[Array, "examples"], desirable: Bool[Array, "examples"], weight: Float[Array, "examples"]
) -> Float[Array, ""]:
    """KL(p+ || reference) = E+[s], in nats, if r is the relative ratio.

    Source: Kullback and Leibler 1951, On information and sufficiency.
    """
    return class_means(log_ratio, desirable, weight).preferred


def policy_kl(log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"]) -> Float[Array, ""]:
    """KL(policy || reference) in nats from samples of the reference: sum r s / sum r.

    As trustworthy as `effective_share` is large.

    Source: self-normalised importance sampling; Hesterberg 1995, Weighted average importance sampling.
    """
    return _under_policy(log_ratio, log_ratio, weight)


def reference_kl(log_ratio: Float[Array, "examples"], weight: Float[Array, "examples"]) -> Float[Array, ""]:
    """KL(reference || policy) in nats from samples of the reference: the mean of -s.

    Source: Kullback and Leibler 1951, On information and sufficiency.
    """
    return mean(-log_ratio, weight)


def correlation(
    first: Float[Array, "examples"], second: Float[Array, "examples"], weight: Float[Array, "examples"]
) -> Float[Array, ""]:
    """Pearson's correlation, without unit; NaN where one of the two is constant.

    Source: Pearson 1895, Note on regression and inheritance in the case of two parents.
    """
    means = mean(first, weight), mean(second, weight)
    first, second = first - means[0], second - means[1]
    spreads = jnp.sqrt(mean(first**2, weight)), jnp.sqrt(mean(second**2, weight))
    constant = _is_rounding(spreads[0], means[0]) | _is_rounding(spreads[1], means[1])
    return jnp.where(constant, jnp.nan, mean(first * second, weight) / (spreads[0] * spreads[1]))


def pearson(
    log_ratio: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    alpha: Scalar,
) -> Float[Array, ""]:
    """Relative Pearson divergence E_q[(r - 1)^2] / 2 = E+[r] - E_q[r^2] / 2 - 1/2, if r is the relative ratio.

    Without a unit.

    Source: Yamada et al. 2011, arXiv:1106.4729.
    """
    ratio = class_means(jnp.exp(log_ratio), desirable, weight).preferred
    square = normalisation(2 * log_ratio, desirable, weight, alpha=alpha)
    return ratio - square / 2 - 0.5


def jensen_shannon(
    log_ratio: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    weight: Float[Array, "examples"],
    *,
    alpha: Scalar,
) -> Float[Array, ""]:
    """Jensen-Shannon divergence of p+ and the reference, log 2 - J / 2, in nats, if r is the relative ratio.

    J is the logistic objective in class means, whatever the share of the classes here.

    Source: Nowozin et al. 2016, arXiv:1606.00709 (the divergence as the optimum of the logistic objective).
    """
    attract = class_means(jax.nn.softplus(-log_ratio), desirable, weight).preferred
    spread = class_means(jax.nn.softplus(log_ratio), desirable, weight)
    return math.log(2) - (attract + alpha * spread.preferred + (1 - alpha) * spread.other) / 2
