"""What a deeper model costs: time to compile the step, size of its program, time of a step."""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from benchmarks.sizes import Size
from benchmarks.step import batch_of, make_examples, make_step
from benchmarks.timing import Cost, alternate
from rdro_jax.batch import Batch


def bench_depth(size: Size) -> dict[str, dict[str, float]]:
    """Figures of the train step of a narrow model by its layers; each depth is compiled thrice at most, in turn."""
    narrow = replace(size, d_model=64, vocab=1024, rows=2, seq=min(size.seq, 128))
    batch = batch_of(make_examples(narrow, np.full(2, narrow.seq)), [[0], [1]], narrow)
    programs, steps, spent = {}, {}, {layers: [] for layers in size.depths}
    for _ in range(min(size.repeats, 3)):
        for layers, samples in spent.items():
            programs[layers], steps[layers], cost = _compile(replace(narrow, layers=layers), batch)
            samples.append(cost)
    costs = alternate({str(layers): step for layers, step in steps.items()}, size.repeats)
    return {
        f"{layers} layers": {
            "compile_seconds": median(cost.seconds for cost in samples),
            "compile_cpu_seconds": median(cost.cpu_seconds for cost in samples),
            "program_kib": len(programs[layers].as_text()) / 1024,
            "step_seconds": costs[str(layers)].seconds,
        }
        for layers, samples in spent.items()
    }


def _compile(size: Size, batch: Batch) -> tuple[Any, Callable[[], Any], Cost]:
    """The compiled step, a function that makes it, and what tracing and compiling cost."""
    step, state = make_step(size)
    wall, cpu = time.perf_counter(), time.process_time()
    program = step.lower(state, batch).compile()
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    return program, lambda: program(state, batch), cost
