"""Every example of a data set through a forward pass, once, packed: log-probs for the reference and for evaluation."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float32
from rich.console import Console
from rich.progress import track

from rdro_jax.batch import Batch
from rdro_jax.data import Examples, make_loader
from rdro_jax.parallel import is_first, shard_rows

Score = Callable[[Batch], jax.Array]
"""Packed rows -> completion log-probs [rows, slots] in nats, the same on every process."""


def score_examples(
    examples: Examples,
    score: Score,
    *,
    rows: int,
    max_length: int,
    slots: int,
    sharding: jax.sharding.Sharding,
    known: Float32[np.ndarray, "examples"] | None = None,
    title: str = "scoring",
) -> Float32[np.ndarray, "examples"]:
    """Completion log-probability of every example, in nats.

    `rows`, `max_length` and `slots` are the batch shape of training, so that the same program serves both. Where
    `known` is a number the example is not scored again.
    """
    logps = np.full(len(examples.lengths), np.nan, np.float32) if known is None else known.copy()
    loader = make_loader(examples, global_batch_size=rows, max_length=max_length, slots=slots, batching="sequential")
    wanted = [step for step in range(loader.num_batches) if _unknown(loader.plans[0][step], logps)]
    console = Console(stderr=True)  # stdout belongs to results: `rdro eval ... > figures.json`
    for step in track(wanted, title, disable=not (console.is_terminal and is_first()), console=console, transient=True):
        batch, members = loader[step]
        scored = np.asarray(score(shard_rows(batch, sharding)))
        logps[members[members >= 0]] = scored[members >= 0]
    return logps


def _unknown(members, logps) -> bool:
    return bool(np.isnan(logps[members[members >= 0]]).any())
