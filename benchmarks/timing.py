"""Variants measured in turn in one run, so that what else the machine does falls on all of them alike."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import jax


class Cost(NamedTuple):
    """Medians over the repetitions."""

    seconds: float
    """From call to result."""
    cpu_seconds: float
    """Over all threads of the process: what a busy machine changes least."""


def alternate(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, Cost]:
    """Cost of each variant; each runs once unmeasured, then all of them in turn, `repeats` times."""
    for run in variants.values():
        jax.block_until_ready(run())
    samples: dict[str, list[Cost]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            samples[name].append(_once(run))
    return {name: Cost(*map(median, zip(*costs, strict=True))) for name, costs in samples.items()}


def _once(run: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)
