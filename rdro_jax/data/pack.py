"""Examples -> fixed-shape rows: which examples share a row, and the row's arrays."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from rdro_jax.batch import Batch
from rdro_jax.data.examples import Examples

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
) -> list[list[int]]:
    """Rows of example indices, packed best-fit with at most `window` rows open at a time.

    Each example of `order` goes into the open row it fills most; when none has room a new row is opened, and the
    oldest is closed once `window` are open. Rows come out in the order they were opened, so an example moves by no
    more than the rows of a window, and what the order balances stays balanced. `lengths` are those of all examples.
    """
    rows: list[list[int]] = []
    open_rows: list[_OpenRow] = []
    for index in order:
        need = int(lengths[index])
        place = bisect_left(open_rows, need, key=lambda row: row.room)
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


def pack_row(
    examples: Examples,
    indices: Iterable[int],
    *,
    max_length: int,
    slots: int,
    reference_logps: Float32[np.ndarray, "examples"] | None = None,
) -> Batch:
    """One row of every field of a Batch (numpy, without the leading axis). Empty slots of `indices` are -1.

    `reference_logps` are those of all examples; None = not yet known, NaN in the row.
    """
    tokens, positions, segment_ids = (np.zeros(max_length, np.int32) for _ in range(3))
    loss_mask = np.zeros(max_length, bool)
    desirable = np.zeros(slots, bool)
    weight, reference = (np.zeros(slots, np.float32) for _ in range(2))
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
        start = end
    return Batch(tokens, positions, segment_ids, loss_mask, desirable, weight, reference)  # type: ignore[arg-type]


def pack_batch(
    examples: Examples,
    plan: Int32[np.ndarray, "rows slots"],
    *,
    max_length: int,
    reference_logps: Float32[np.ndarray, "examples"] | None = None,
) -> Batch:
    """The Batch (numpy) of planned rows; -1 in the plan is an empty slot, a row of -1 an empty row."""
    slots = plan.shape[1]
    rows = [
        pack_row(examples, row, max_length=max_length, slots=slots, reference_logps=reference_logps) for row in plan
    ]
    return Batch(*map(np.stack, zip(*rows, strict=True)))  # type: ignore[arg-type]
