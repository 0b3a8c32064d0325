"""Every example of a data set through a forward pass, once, packed: log-probs for the reference and for evaluation."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32
from rich.console import Console
from rich.progress import track

from rdro_jax.batch import Batch
from rdro_jax.data import Examples, make_loader
from rdro_jax.parallel import is_first, shard_rows

Score = Callable[[Batch], jax.Array]
"""Packed rows -> completion log-probs [rows, slots] in nats, the same on every process."""

Scored = tuple[Int32[np.ndarray, "scored"], Float32[np.ndarray, "scored"]]
"""Indices of examples, and their completion log-probs in nats."""


def score_examples(
    examples: Examples, score: Score, *, go_on: Callable[[], None] = lambda: None, **how: Any
) -> Float32[np.ndarray, "examples"]:
    """Completion log-probability of every example, in nats; `how` are the arguments of `score_batches`.

    `go_on` is called after each batch, and may raise.
    """
    logps = np.full(len(examples.lengths), np.nan, np.float32)
    for members, scored in score_batches(examples, score, **how):
        logps[members] = scored
        go_on()
    return logps


def score_batches(
    examples: Examples,
    score: Score,
    *,
    rows: int,
    max_length: int,
    slots: int,
    sharding: jax.sharding.Sharding,
    known: Float32[np.ndarray, "examples"] | None = None,
    title: str = "scoring",
) -> Iterator[Scored]:
    """Yields the completion log-probabilities of all examples, batch by batch, in nats.

    `rows`, `max_length` and `slots` are the batch shape of training, so that the same program serves both. A batch
    whose examples all have a number in `known` is passed over. Each batch is fetched while the next is computed.
    """
    loader = make_loader(examples, global_batch_size=rows, max_length=max_length, slots=slots, batching="sequential")
    wanted = [step for step in range(loader.num_batches) if _unknown(loader.plans[0][step], known)]
    console = Console(stderr=True)  # stdout belongs to results: `rdro eval ... > figures.json`
    under_way = None
    for step in track(wanted, title, disable=not (console.is_terminal and is_first()), console=console, transient=True):
        batch, members = loader[step]
        ahead = members, score(shard_rows(batch, sharding))
        if under_way is not None:
            yield _fetched(*under_way)
        under_way = ahead
    if under_way is not None:
        yield _fetched(*under_way)


def _fetched(members: Int32[np.ndarray, "rows slots"], logps: jax.Array) -> Scored:
    return members[members >= 0], np.asarray(logps)[members >= 0]


def _unknown(members: Int32[np.ndarray, "rows slots"], known: Float32[np.ndarray, "examples"] | None) -> bool:
    return known is None or bool(np.isnan(known[members[members >= 0]]).any())
