"""Examples as flat arrays: what rows become, however they were read."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Int, Int32, Int64, UInt64

from rdro_jax.data.chat import prompt_messages
from rdro_jax.data.pairs import NO_COUNTERPART, pair_up, take
from rdro_jax.data.records import NO_VARIABLES, Message
from rdro_jax.data.report import DataReport, Layout, SourceReport, Tally, make_report, names_of
from rdro_jax.errors import RecordError

Arrays = dict[str, np.ndarray]
"""Per example, but `tokens`: lengths, prompt_lengths, desirable, weight, hashes, truncated, prompt_hashes, alpha."""


class Examples(NamedTuple):
    """Examples in the order of their rows: example `i` is `tokens[offsets[i] : offsets[i + 1]]`.

    Of paired rows, pair `i` is the examples `2i` (chosen, desirable) and `2i + 1` (rejected, not desirable).
    """

    tokens: Int32[np.ndarray, "tokens"]
    offsets: Int64[np.ndarray, "examples_plus_one"]
    prompt_lengths: Int32[np.ndarray, "examples"]
    """Tokens of each example before its completion; at least 1."""
    desirable: Bool[np.ndarray, "examples"]
    weight: Float32[np.ndarray, "examples"]
    hashes: UInt64[np.ndarray, "examples 2"]
    """128-bit hash (high, low) of each example's tokens and prompt length."""
    truncated: Bool[np.ndarray, "examples"]
    """True where something was cut."""
    report: DataReport
    paired: bool = False
    """True where the halves of a pair stay together in adjacent slots, as losses over pairs want them."""
    split_pairs: bool = False
    """True where the halves of a pair are two examples like any others, which the loader keeps apart."""
    prompt_hashes: UInt64[np.ndarray, "examples"] | None = None
    """Hash of each example's prompt as the row has it, before any cut; None where examples were not read from rows."""
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None
    """The rows' `alpha` column, NaN where a row has none; None where no row has one."""

    @property
    def lengths(self) -> Int64[np.ndarray, "examples"]:
        """Tokens of each example."""
        return np.diff(self.offsets)


def take_examples(examples: Examples, order: Int64[np.ndarray, "taken"]) -> Examples:
    """The examples of `order`, in memory, each for itself: pairs are taken apart."""
    nothing = np.zeros(0, np.int32)
    tokens = [examples.tokens[examples.offsets[i] : examples.offsets[i + 1]] for i in order]
    names = ("prompt_lengths", "desirable", "weight", "hashes", "truncated")
    return Examples(
        tokens=np.concatenate([nothing, *tokens]),
        offsets=np.concatenate([[0], np.cumsum(examples.lengths[order])]),
        **{name: getattr(examples, name)[order] for name in names},
        report=examples.report,
    )


def make_examples(
    arrays: Mapping[str, np.ndarray],
    tally: Tally,
    sources: Sequence[SourceReport],
    layout: Layout,
    *,
    require_label: bool,
) -> Examples:
    """Examples and their report.

    Raises: RecordError for labels that are all the same, or where no pair can be made of what is not paired.
    """
    if layout == "paired" and any(source.format == "unpaired" for source in sources):
        arrays, tally = _make_pairs(arrays, tally, sources)
    desirable = arrays["desirable"]
    if require_label and desirable.all() == desirable.any():
        label = "true" if desirable.all() else "false"
        what = f"{label} in all {len(desirable)} rows; rows of both classes are wanted"
        raise RecordError(f"{names_of(sources)}: label: {what}")
    alpha = arrays["alpha"]
    return Examples(
        tokens=arrays["tokens"],
        offsets=np.concatenate([[0], np.cumsum(arrays["lengths"], dtype=np.int64)]),
        prompt_lengths=arrays["prompt_lengths"],
        desirable=desirable,
        weight=arrays["weight"],
        hashes=arrays["hashes"],
        truncated=arrays["truncated"],
        report=make_report(arrays, tally, sources, layout),
        paired=layout == "paired",
        split_pairs=layout == "unpaired" and all(source.format == "paired" for source in sources),
        prompt_hashes=arrays["prompt_hashes"],
        prompt_alpha=None if np.isnan(alpha).all() else alpha,
    )


def _make_pairs(
    arrays: Mapping[str, np.ndarray], tally: Tally, sources: Sequence[SourceReport]
) -> tuple[Arrays, Tally]:
    """The examples as pairs, and a tally in which those without a counterpart are left out."""
    if any(source.format == "paired" for source in sources):
        raise RecordError(
            f"{names_of(sources)}: some rows are paired and some are not; wanted one form for a paired loss"
        )
    pairs = pair_up(dict(arrays))
    if not len(pairs):
        raise RecordError(f"{names_of(sources)}: no prompt has a desirable and an undesirable completion to pair")
    faults = replace(tally.faults, causes=tally.faults.causes.copy())
    faults.causes += Counter({f"row: {NO_COUNTERPART}": len(arrays["desirable"]) - pairs.size})
    return take(dict(arrays), pairs.ravel()), replace(tally, faults=faults)


def token_examples(
    prompts: Sequence[Sequence[int]] | Int[np.ndarray, "examples prompt"],
    completions: Sequence[Sequence[int]] | Int[np.ndarray, "examples completion"],
    desirable: Sequence[bool] | Bool[np.ndarray, "examples"],
    *,
    weight: Sequence[float] | Float32[np.ndarray, "examples"] | None = None,
) -> Examples:
    """Examples of token ids that are there already; without `weight`, each counts 1.

    Raises: ValueError for numbers of examples that differ, for none, and for a prompt or a completion without a token.
    """
    counts = {"prompts": len(prompts), "completions": len(completions), "labels": len(desirable)}
    counts |= {} if weight is None else {"weights": len(weight)}
    if not len(prompts) or len(set(counts.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"{told}; wanted as many of each, at least one")
    for name, tokens in (("prompt", prompts), ("completion", completions)):
        if not all(map(len, tokens)):
            empty = next(number for number, each in enumerate(tokens) if not len(each))
            raise ValueError(f"{name} {empty} has no token; wanted at least one, which may be a BOS or an EOS")
    whole = [
        np.array([*prompt, *completion], np.int32) for prompt, completion in zip(prompts, completions, strict=True)
    ]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    of_prompts = [example_hash(tokens[:length], length)[1] for tokens, length in zip(whole, lengths, strict=True)]
    arrays = {
        "tokens": np.concatenate(whole),
        "lengths": np.array([len(tokens) for tokens in whole], np.int32),
        "prompt_lengths": lengths,
        "desirable": np.asarray(desirable, bool),
        "weight": np.ones(len(whole), np.float32) if weight is None else np.asarray(weight, np.float32),
        "hashes": np.array([example_hash(*each) for each in zip(whole, lengths, strict=True)], np.uint64),
        "truncated": np.zeros(len(whole), bool),
        "prompt_hashes": np.array(of_prompts, np.uint64),
        "alpha": np.full(len(whole), np.nan, np.float32),
    }
    return make_examples(arrays, Tally(rows=len(whole)), (), "unpaired", require_label=False)


def example_hash(tokens: Int32[np.ndarray, "tokens"], prompt_length: int) -> tuple[int, int]:
    """128-bit hash (high, low) of what a completion's log-probability depends on: its tokens and where it begins."""
    whole = np.append(tokens, np.int32(prompt_length)).astype("<i4")
    value = xxhash.xxh3_128_intdigest(whole.tobytes())
    return value >> 64, value & (2**64 - 1)


def prompt_hash(prompt: str | list[Message], variables: Mapping[str, Any] = NO_VARIABLES) -> int:
    """64-bit hash of the conversation a prompt stands for; text and the one user message it stands for are equal."""
    conversation = prompt_messages(prompt)
    whole = [conversation, dict(variables)] if variables else conversation
    return xxhash.xxh3_64_intdigest(json.dumps(whole, sort_keys=True).encode())
