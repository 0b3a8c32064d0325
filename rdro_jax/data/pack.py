"""Examples -> fixed-shape rows: which examples share a row, and the row's arrays."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from rdro_jax.batch import Batch
from rdro_jax.data.examples import Examples, token_examples

EMPTY = -1
"""Stands in the place of an example index where a slot is empty."""


class _OpenRow(NamedTuple):
    """A row being filled. Sorts by free room, then by age."""

    room: int
    age: int
    examples: list[int]


def plan_rows(
    order: Sequence[int] | Int[np.ndarray, "examples"],
    lengths: Int[np.ndarray, "examples"],
    *,
    max_length: int,
    slots: int,
    window: int,
    apart: bool = False,
) -> list[list[int]]:
    """Rows of example indices, packed best-fit with at most `window` rows open at a time.

    Each example of `order` goes into the open row it fills most; when none has room a new row is opened, and the
    oldest is closed once `window` are open. Rows come out in the order they were opened, so an example moves by no
    more than the rows of a window, and what the order balances stays balanced. `lengths` are those of all examples.
    `apart` lets no row hold both of the examples 2i and 2i + 1.
    """
    rows: list[list[int]] = []
    open_rows: list[_OpenRow] = []
    for index in order:
        need = int(lengths[index])
        place = bisect_left(open_rows, need, key=lambda row: row.room)
        while apart and place < len(open_rows) and index ^ 1 in open_rows[place].examples:
            place += 1
        if place < len(open_rows):
            row = open_rows.pop(place)
        else:
            row = _OpenRow(max_length, len(rows), [])
            rows.append(row.examples)
            if len(open_rows) >= window:
                open_rows.remove(min(open_rows, key=lambda row: row.age))
        row.examples.append(int(index))
        if len(row.examples) < slots:
            insort(open_rows, row._replace(room=row.room - need), key=lambda row: (row.room, row.age))
    return rows


def plan_pair_rows(
    pair_order: Sequence[int] | Int[np.ndarray, "pairs"],
    lengths: Int[np.ndarray, "examples"],
    *,
    max_length: int,
    slots: int,
    window: int,
) -> list[list[int]]:
    """Rows of whole pairs, packed like examples in `plan_rows`: 2i (chosen) in an even slot, 2i + 1 (rejected) next."""
    pair_lengths = lengths.reshape(-1, 2).sum(axis=1)
    rows = plan_rows(pair_order, pair_lengths, max_length=max_length, slots=slots // 2, window=window)
    return [[half for pair in row for half in (2 * pair, 2 * pair + 1)] for row in rows]


def pack_row(
    examples: Examples,
    indices: Iterable[int],
    *,
    max_length: int,
    slots: int,
    reference_logps: Float32[np.ndarray, "examples"] | None = None,
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None,
) -> Batch:
    """One row of every field of a Batch (numpy, without the leading axis). Empty slots of `indices` are -1.

    `reference_logps` and `prompt_alpha` are those of all examples. Without the former, NaN in the row: not yet known;
    without the latter, None: not asked for.
    """
    tokens, positions, segment_ids = (np.zeros(max_length, np.int32) for _ in range(3))
    loss_mask = np.zeros(max_length, bool)
    desirable = np.zeros(slots, bool)
    weight, reference = (np.zeros(slots, np.float32) for _ in range(2))
    alpha = None if prompt_alpha is None else np.full(slots, 0.5, np.float32)
    start = 0
    for slot, index in enumerate(indices):
        if index == EMPTY:
            continue
        example = examples.tokens[examples.offsets[index] : examples.offsets[index + 1]]
        end = start + len(example)
        tokens[start:end] = example
        positions[start:end] = np.arange(len(example))
        segment_ids[start:end] = slot + 1
        # One place to the left: position t predicts token t + 1, and the last token of a segment predicts nothing.
        loss_mask[start + examples.prompt_lengths[index] - 1 : end - 1] = True
        desirable[slot] = examples.desirable[index]
        weight[slot] = examples.weight[index]
        reference[slot] = np.nan if reference_logps is None else reference_logps[index]
        if alpha is not None and prompt_alpha is not None:
            alpha[slot] = prompt_alpha[index]
        start = end
    return Batch(tokens, positions, segment_ids, loss_mask, desirable, weight, reference, alpha)  # type: ignore[arg-type]


def pack_batch(
    examples: Examples,
    plan: Int32[np.ndarray, "rows slots"],
    *,
    max_length: int,
    reference_logps: Float32[np.ndarray, "examples"] | None = None,
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None,
) -> Batch:
    """The Batch (numpy) of planned rows; -1 in the plan is an empty slot, a row of -1 an empty row."""
    rows = [
        pack_row(
            examples,
            row,
            max_length=max_length,
            slots=plan.shape[1],
            reference_logps=reference_logps,
            prompt_alpha=prompt_alpha,
        )
        for row in plan
    ]
    fields = (None if column[0] is None else np.stack(column) for column in zip(*rows, strict=True))
    return Batch(*fields)  # type: ignore[arg-type]


def make_batch(
    prompts: Sequence[Sequence[int]] | Int[np.ndarray, "examples prompt"],
    completions: Sequence[Sequence[int]] | Int[np.ndarray, "examples completion"],
    desirable: Sequence[bool] | Bool[np.ndarray, "examples"],
    *,
    slots: int = 1,
    weight: Sequence[float] | Float32[np.ndarray, "examples"] | None = None,
    reference_logps: Sequence[float] | Float32[np.ndarray, "examples"] | None = None,
) -> Batch:
    """The Batch (numpy) of token ids: `slots` examples a row in the order given, rows as long as the longest of them.

    For losses over pairs give chosen and rejected in turn, and an even number of slots. `reference_logps` are in nats;
    without them NaN, to be replaced before a loss that reads them. Files of text are read by `load_examples`.

    Raises: ValueError for numbers of examples that differ, for none, and for a prompt or a completion without a token.

    >>> batch = make_batch([[5, 6], [3]], [[7, 8], [4]], [True, False], slots=2)
    >>> batch.tokens.tolist(), batch.segment_ids.tolist()
    ([[5, 6, 7, 8, 3, 4]], [[1, 1, 1, 1, 2, 2]])
    >>> batch.loss_mask.tolist()  # true where the next token is of the completion
    [[False, True, True, False, True, False]]
    """
    examples = token_examples(prompts, completions, desirable, weight=weight)
    count = len(examples.lengths)
    plan = np.full((-(-count // slots), slots), EMPTY, np.int32)
    plan.flat[:count] = np.arange(count)
    longest = np.append(examples.lengths, 0)[plan].sum(axis=1).max()
    reference = None if reference_logps is None else np.asarray(reference_logps, np.float32)
    return pack_batch(examples, plan, max_length=int(longest), reference_logps=reference)
