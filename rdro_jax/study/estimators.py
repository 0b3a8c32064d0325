"""What a minibatch estimator of RDRO does to the policy it converges to."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from rdro_jax.losses import rdro
from rdro_jax.study.fit import expected_loss, fit_policy, minimise
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import (
    ALPHA,
    Shares,
    World,
    draw_counts,
    draw_worlds,
    population,
    slope,
    softmax,
    total_variation,
)

WORLDS_PER_SEED = 8
BATCH_SIZES = (1, 2, 4, 8)
SIZES = 200 * 2 ** np.arange(11)
"""Training sets of 200 to 204,800 completions."""
BATCH_MEAN = partial(rdro, alpha=ALPHA, estimator="batch_mean")


def batch(options: Options) -> StudyReport:
    """T6: the minimiser of the loss that batches of a given size have on average."""
    worlds = draw_worlds(np.random.default_rng(5), WORLDS_PER_SEED * options.seeds)
    reference = worlds.mixture(ALPHA)
    class_mean = [_distance(fit_class_mean(worlds, size), worlds) for size in BATCH_SIZES]
    per_example = fit_policy(partial(rdro, alpha=ALPHA), reference, population(worlds, ALPHA))
    exact = float(total_variation(per_example, worlds.preferred).max())
    return StudyReport(
        name="batch",
        claim="Class means are biased where a batch lacks a class; the per-example estimator never is",
        setting=f"{len(reference)} worlds, alpha = {ALPHA}, population; the average loss of batches of B, minimised",
        checks=(
            Check("per_example, any B: largest total variation to p+", exact, below=1e-3),
            Check("class_mean, B = 1: mean total variation to p+", class_mean[0], above=0.03),
            *(Check(f"class_mean, B = {size}", tv) for size, tv in zip(BATCH_SIZES[1:], class_mean[1:], strict=True)),
        ),
        panels=(
            Panel(
                "Bias of the estimators",
                "examples per batch",
                "total variation of the minimiser to p+",
                (Curve("class_mean", BATCH_SIZES, class_mean), Curve("per_example", BATCH_SIZES, [exact] * 4)),
                x_scale="log",
            ),
        ),
    )


def fit_class_mean(worlds: World, size: int) -> Float64[np.ndarray, "worlds outcomes"]:
    """The policy that minimises the class-mean loss averaged over batches of `size`, of every composition."""

    def objective(logits: Float[Array, "outcomes"], data: tuple[Float[Array, "outcomes"], World]) -> Float[Array, ""]:
        reference, world = data
        total = jnp.zeros(())
        for preferred in range(size + 1):
            share = preferred / size
            chance = math.comb(size, preferred) * ALPHA**preferred * (1 - ALPHA) ** (size - preferred)
            loss = partial(rdro, alpha=ALPHA, estimator="class_mean", desirable_share=share)
            shares = Shares(share * world.preferred, (1 - share) * world.other)
            total += chance * expected_loss(loss, jax.nn.log_softmax(logits), reference, shares)
        return total

    reference = np.log(worlds.mixture(ALPHA))
    return softmax(minimise(objective, reference, (reference, worlds)))


def _distance(policies: Float64[np.ndarray, "worlds outcomes"], worlds: World) -> float:
    return float(total_variation(policies, worlds.preferred).mean())


def batch_mean(options: Options) -> StudyReport:
    """What the mean over a batch without class frequencies converges to, and that it is not p+ / mixture."""
    random = np.random.default_rng(4)
    worlds = draw_worlds(random, WORLDS_PER_SEED * options.seeds)
    sizes = SIZES[::3] if options.fast else SIZES
    repeated = worlds.repeat(len(sizes))
    training = draw_counts(random, repeated, ALPHA, np.repeat(sizes, len(worlds.preferred)))
    ratios = fit_ratio(training)

    def distances(limit: Float64[np.ndarray, "worlds outcomes"]) -> Float64[np.ndarray, "sizes"]:
        gaps = (repeated.mixture(ALPHA) * np.abs(ratios - limit)).sum(-1)
        return gaps.reshape(len(sizes), -1).mean(1)

    closed, wanted = distances(batch_mean_limit(repeated)), distances(repeated.preferred / repeated.mixture(ALPHA))
    exact = fit_ratio(population(worlds, ALPHA)) / batch_mean_limit(worlds) - 1
    policy = fit_policy(BATCH_MEAN, worlds.mixture(ALPHA), population(worlds, ALPHA))
    return StudyReport(
        name="batch_mean",
        claim="batch_mean converges to alpha p+ / (alpha^2 p+ + (1 - alpha)^2 p-), not to r* = p+ / mixture",
        setting=f"{len(policy)} worlds, alpha = {ALPHA}; ratios fitted freely, mean |r - limit| under the mixture",
        checks=(
            Check("population: largest relative distance from the closed form", float(np.abs(exact).max()), below=1e-6),
            Check("slope of the distance from the closed form", slope(sizes, closed), -0.62, -0.38),
            Check(f"distance from the closed form at {sizes[-1]:,}", float(closed[-1])),
            Check(f"distance from r* at {sizes[-1]:,}", float(wanted[-1]), above=0.1),
            Check("population policy: total variation to p+", _distance(policy, worlds), above=0.03),
        ),
        panels=(
            Panel(
                "Ratio fitted by batch_mean",
                "training completions",
                "mean distance of the ratio",
                (
                    Curve("from alpha p+ / (alpha² p+ + (1 - alpha)² p-)", sizes.tolist(), closed.tolist()),
                    Curve("from r*", sizes.tolist(), wanted.tolist()),
                ),
                x_scale="log",
                y_scale="log",
            ),
        ),
    )


def batch_mean_limit(worlds: World) -> Float64[np.ndarray, "worlds outcomes"]:
    """The ratio that minimises the population loss of `batch_mean`: the class prior counted twice."""
    preferred, other = ALPHA**2 * worlds.preferred, (1 - ALPHA) ** 2 * worlds.other
    return preferred / (preferred + other) / ALPHA


def fit_ratio(shares: Shares) -> Float64[np.ndarray, "worlds outcomes"]:
    """The ratio that minimises the mean loss of `batch_mean` where nothing normalises it, found from 1."""

    def objective(log_ratio: Float[Array, "outcomes"], shares: Shares) -> Float[Array, ""]:
        return expected_loss(BATCH_MEAN, log_ratio, jnp.zeros_like(log_ratio), shares)

    return np.exp(minimise(objective, np.zeros_like(shares.preferred), shares))
