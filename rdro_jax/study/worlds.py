"""Known truths: distributions of preferred and other completions over a few outcomes, and samples of them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

OUTCOMES = 20
"""Completions a tabular world knows."""
ALPHA = 0.39
"""Share of preferred completions where a study does not vary it: that of the paper's UF-G."""


class World(NamedTuple):
    """The truth a policy is measured against. Leading axes are worlds."""

    preferred: Float64[np.ndarray, "*worlds outcomes"]
    """p+, what RDRO's policy should become."""
    other: Float64[np.ndarray, "*worlds outcomes"]
    """p-."""

    def mixture(self, alpha: float | Float64[np.ndarray, "*worlds 1"]) -> Float64[np.ndarray, "*worlds outcomes"]:
        """q = alpha p+ + (1 - alpha) p-, what the reference should be."""
        return alpha * self.preferred + (1 - alpha) * self.other

    def repeat(self, times: int) -> "World":
        """Every world `times` over: [worlds, ...] -> [times x worlds, ...], all worlds once, then again."""
        return World(*(np.tile(p, (times, 1)) for p in self))


class Shares(NamedTuple):
    """Weight of every outcome in a training set, by label; the weights of one world sum to 1."""

    preferred: Float64[np.ndarray, "*worlds outcomes"]
    other: Float64[np.ndarray, "*worlds outcomes"]


def draw_distributions(
    random: np.random.Generator, shape: tuple[int, ...], outcomes: int = OUTCOMES
) -> Float64[np.ndarray, "*shape outcomes"]:
    """0.98 Dirichlet(0.7) + 0.02 / outcomes: uneven, and nowhere 0."""
    return 0.98 * random.dirichlet(np.full(outcomes, 0.7), size=shape) + 0.02 / outcomes


def draw_worlds(random: np.random.Generator, count: int) -> World:
    """`count` worlds of 20 outcomes, p+ and p- drawn independently."""
    return World(*draw_distributions(random, (2, count)))


def population(world: World, alpha: float | Float64[np.ndarray, "*worlds 1"]) -> Shares:
    """What an endless training set would hold at the preferred rate `alpha`."""
    return Shares(alpha * world.preferred, (1 - alpha) * world.other)


def draw_counts(
    random: np.random.Generator,
    world: World,
    alpha: float | Float64[np.ndarray, "*worlds"],
    samples: int | Int64[np.ndarray, "*worlds"],
) -> Shares:
    """Shares of a training set of `samples` independent labelled completions a world, labels drawn at rate `alpha`."""
    counts = np.broadcast_to(samples, world.preferred.shape[:-1])
    preferred = random.binomial(counts, alpha)
    drawn = random.multinomial(preferred, world.preferred), random.multinomial(counts - preferred, world.other)
    return Shares(*(part / counts[..., None] for part in drawn))


def total_variation(
    policy: Float64[np.ndarray, "*worlds outcomes"], truth: Float64[np.ndarray, "*worlds outcomes"]
) -> Float64[np.ndarray, "*worlds"]:
    """Half the sum of absolute differences, in [0, 1]."""
    return 0.5 * np.abs(policy - truth).sum(-1)


def softmax(logits: Float64[np.ndarray, "*worlds outcomes"]) -> Float64[np.ndarray, "*worlds outcomes"]:
    """Probabilities of logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def slope(sizes: Int64[np.ndarray, "sizes"], distances: Float64[np.ndarray, "sizes"]) -> float:
    """Least-squares slope of log distance against log size: -1/2 is the rate of statistics."""
    return float(np.polyfit(np.log(sizes), np.log(distances), 1)[0])
