"""A save beside a step: what it costs, hashes included, and how rare it has to be to cost less than 5 % of them."""

import tempfile
import time
from itertools import count
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks.sizes import Size
from benchmarks.step import batch_of, compile_step, make_examples, make_model
from benchmarks.timing import alternate
from rdro_jax.checkpoint import CheckpointConfig, CheckpointWriter, list_steps, write_manifest
from rdro_jax.losses import RDRO
from rdro_jax.models import init_params
from rdro_jax.train import init_state
from rdro_jax.train.state import state_items

BAR = 0.05
"""Share of the steps' time that saving may cost."""
SAVE_STEPS = 100
"""Steps between saves in the recipes; by itself a run saves at its end only."""


def bench_checkpoint(size: Size) -> dict[str, float]:
    """Seconds of a step, of the part of a save that keeps the loop waiting, and of all of it; CPU-seconds likewise."""
    batch = batch_of(make_examples(size, np.full(size.rows, size.seq)), [[row] for row in range(size.rows)], size)
    items = state_items(
        init_state(init_params(make_model(size), jax.random.key(size.seed)), RDRO(alpha=0.5), optax.adamw(1e-6))
    )
    with tempfile.TemporaryDirectory() as folder:
        run, steps, blocked = Path(folder), count(1), []
        writer = CheckpointWriter(run, CheckpointConfig())

        def save() -> None:
            start = time.perf_counter()
            writer.save(next(steps), items, {})
            blocked.append(time.perf_counter() - start)
            writer.wait()

        hashes = lambda: write_manifest(run, list_steps(run)[-1], {})  # noqa: E731
        costs = alternate({"step": compile_step(size, batch), "save": save, "hashes": hashes}, size.repeats)
    return {
        "megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(items)) / 1e6,
        "step_seconds": costs["step"].seconds,
        "save_seconds": costs["save"].seconds,
        "save_blocks_seconds": float(np.median(blocked[1:])),
        "step_cpu_seconds": costs["step"].cpu_seconds,
        "save_cpu_seconds": costs["save"].cpu_seconds,
        "hashes_cpu_seconds": costs["hashes"].cpu_seconds,
        "steps_between_saves_for_5_percent": costs["save"].cpu_seconds / (BAR * costs["step"].cpu_seconds),
        "percent_of_steps_at_every_100": 100 * costs["save"].cpu_seconds / (SAVE_STEPS * costs["step"].cpu_seconds),
    }
