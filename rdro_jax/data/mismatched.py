"""Prompts with other examples' completions: what KTO's KL is measured on (Ethayarajh et al. 2024, arXiv:2402.01306).

Which prompt meets which completion is a pure function of (seed, epoch, step), so that the reference can score these
examples once, before training, like all others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from rdro_jax.data.examples import Examples, example_hash
from rdro_jax.data.pack import EMPTY, plan_rows

Plan = Int32[np.ndarray, "batches rows slots"]


class Mismatched(NamedTuple):
    """The mismatched examples of a run."""

    examples: Examples
    """Those of all epochs, step after step: as many tokens as the epochs together have."""
    plans: tuple[Plan, ...]
    """Of each epoch: the mismatched example in each slot of each row of each global batch; -1 = empty."""
    unmatched: int
    """Examples left without one, because all completions of their batch are equal."""
    surplus: int
    """Mismatched examples left out, because the rows of their batch were full."""


def plan_mismatched(examples: Examples, plans: Sequence[Plan], *, max_length: int, seed: int) -> Mismatched:
    """For every global batch of `plans` (one plan an epoch), its examples' prompts with each other's completions.

    An example never meets its own completion nor an equal one; every completion is used about once. A pair longer than
    `max_length` loses the beginning of its prompt. Where a batch does not fit into its rows, examples drawn evenly are
    left out.
    """
    same = completion_numbers(examples)
    sources: list[Int32[np.ndarray, "mismatched two"]] = []
    mismatched_plans: list[Plan] = []
    made = unmatched = surplus = 0
    for epoch, plan in enumerate(plans):
        rows = np.full(plan.shape, EMPTY, np.int32)
        for step, members in enumerate(plan):
            random = np.random.default_rng([seed, epoch, step])
            order = random.permutation(members[members != EMPTY])
            partners = next_different(same[order])
            pairs = np.stack([order, order[partners]], axis=1)[partners >= 0]
            lengths = mismatched_lengths(examples, pairs, max_length)
            packed = _pack_evenly(lengths, len(members), max_length=max_length, slots=plan.shape[2])
            for place, row in zip(random.permutation(len(members)), packed, strict=False):
                rows[step, place, : len(row)] = made + np.array(row)
            kept = sum(map(len, packed))
            unmatched, surplus = unmatched + len(order) - len(pairs), surplus + len(pairs) - kept
            sources.append(pairs[:kept])
            made += kept
        mismatched_plans.append(rows)
    made_examples = mismatched_examples(examples, np.concatenate(sources), max_length)
    return Mismatched(made_examples, tuple(mismatched_plans), unmatched, surplus)


def completion_numbers(examples: Examples) -> Int64[np.ndarray, "examples"]:
    """A number for each example's completion; equal completions have equal numbers."""
    numbers: dict[bytes, int] = {}
    begins = examples.offsets[:-1] + examples.prompt_lengths
    completions = (examples.tokens[begin:end] for begin, end in zip(begins, examples.offsets[1:], strict=True))
    return np.array([numbers.setdefault(tokens.tobytes(), len(numbers)) for tokens in completions], np.int64)


def next_different(values: Int64[np.ndarray, "places"]) -> Int64[np.ndarray, "places"]:
    """For each place of a ring, the next place that holds another value; -1 where all values are equal.

    >>> next_different(np.array([7, 7, 8, 9])).tolist()
    [2, 2, 3, 0]
    """
    borders = np.flatnonzero(values != np.roll(values, -1))
    if len(borders) == 0:
        return np.full(len(values), -1)
    border = borders[np.searchsorted(borders, np.arange(len(values))) % len(borders)]
    return (border + 1) % len(values)


def mismatched_lengths(
    examples: Examples, pairs: Int32[np.ndarray, "mismatched two"], max_length: int
) -> Int64[np.ndarray, "mismatched"]:
    """Tokens of each pair (example with the prompt, example with the completion), cut to `max_length`."""
    completions = (examples.lengths - examples.prompt_lengths)[pairs[:, 1]]
    return np.minimum(examples.prompt_lengths[pairs[:, 0]] + completions, max_length)


def _pack_evenly(
    lengths: Int64[np.ndarray, "mismatched"], rows: int, *, max_length: int, slots: int
) -> list[list[int]]:
    """At most `rows` rows of places in `lengths`: of all, or of as many from the start as fit.

    The start is as good a sample as any, because the order is random; leaving out what happens not to fit would leave
    out long examples, whose log-ratios are not like the others'.
    """
    count = len(lengths)
    while True:
        longest_first = np.argsort(-lengths[:count], kind="stable")
        packed = plan_rows(longest_first, lengths, max_length=max_length, slots=slots, window=max(1, count))
        if len(packed) <= rows:
            return packed
        surplus = sum(int(lengths[place]) for row in packed[rows:] for place in row)
        count -= max(1, surplus // int(lengths[:count].mean()))


def mismatched_examples(examples: Examples, pairs: Int32[np.ndarray, "mismatched two"], max_length: int) -> Examples:
    """Examples made of the prompt of one example and the completion of another; label and weight are the former's."""
    completions = (examples.lengths - examples.prompt_lengths)[pairs[:, 1]]
    prompts = np.minimum(examples.prompt_lengths[pairs[:, 0]], max_length - completions)
    parts: list[np.ndarray] = []
    for (one, other), kept, length in zip(pairs, prompts, completions, strict=True):
        prompt_end = examples.offsets[one] + examples.prompt_lengths[one]
        end = examples.offsets[other + 1]
        parts.append(
            np.concatenate([examples.tokens[prompt_end - kept : prompt_end], examples.tokens[end - length : end]])
        )
    hashes = [example_hash(tokens, int(kept)) for tokens, kept in zip(parts, prompts, strict=True)]
    return Examples(
        tokens=np.concatenate([np.zeros(0, np.int32), *parts]),
        offsets=np.concatenate([[0], np.cumsum(prompts + completions)]).astype(np.int64),
        prompt_lengths=prompts.astype(np.int32),
        desirable=examples.desirable[pairs[:, 0]],
        weight=examples.weight[pairs[:, 0]],
        hashes=np.array(hashes, np.uint64).reshape(-1, 2),
        truncated=prompts < examples.prompt_lengths[pairs[:, 0]],
        report=examples.report,
    )
