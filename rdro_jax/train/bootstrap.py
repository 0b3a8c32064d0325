"""Intervals by resampling prompts: completions of one prompt stand or fall together."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

RESAMPLES, BLOCK = 1000, 50
"""Resamples, and how many of them are held at a time."""
LEVEL = 0.95


def draw_prompts(count: int, *, seed: int = 0) -> Iterator[Int[np.ndarray, "block prompts"]]:
    """How often each of `count` prompts is drawn, with replacement: RESAMPLES rows, BLOCK at a time."""
    random = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK):
        drawn = random.integers(count, size=(BLOCK, count)) + count * np.arange(BLOCK)[:, None]
        yield np.bincount(drawn.ravel(), minlength=BLOCK * count).reshape(BLOCK, count)


def drawn_together(prompts: UInt64[np.ndarray, "examples"] | None, count: int) -> Int[np.ndarray, "examples"]:
    """Which draw each of `count` examples goes with: its prompt's, or its own where fewer than two prompts are told."""
    members, group = np.unique(np.arange(count) if prompts is None else prompts, return_inverse=True)
    return group if len(members) > 1 else np.arange(count)


def interval(values: Float[np.ndarray, "resamples"], level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of the resampled values; NaN where none had anything to stand on."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def resampled_auc(
    scores: Float[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
    times: Float[np.ndarray, "resamples examples"],
) -> Float[np.ndarray, "resamples"]:
    """AUC where every example counts as often as it was drawn, or by a weight; NaN where a class was not."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # examples of one score are one step
    positives, negatives = (
        np.add.reduceat(times[:, order] * member[order], starts, axis=1, dtype=np.float64)
        for member in (desirable, ~desirable)
    )
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    return np.divide((positives * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def resampled_quantiles(
    values: Float[np.ndarray, "examples"],
    times: Int[np.ndarray, "resamples examples"],
    probabilities: tuple[float, ...],
) -> Float[np.ndarray, "resamples probabilities"]:
    """Quantiles, linear between neighbours, of the values as often as they were drawn; NaN where none was."""
    order = np.argsort(values, kind="stable")
    found = np.full((len(times), len(probabilities)), np.nan)
    for row, upto in zip(found, np.cumsum(times[:, order], axis=1), strict=True):
        if len(upto) and upto[-1]:
            at = (upto[-1] - 1) * np.asarray(probabilities)
            low, high = (
                values[order[np.searchsorted(upto, place, side="right")]] for place in (np.floor(at), np.ceil(at))
            )
            row[:] = low + (high - low) * (at % 1)
    return found
