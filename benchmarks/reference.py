"""Reference log-probs kept in the batch, beside a step that computes them from a second set of parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import Size
from benchmarks.step import batch_of, make_examples, make_model, make_step
from benchmarks.timing import alternate
from rdro_jax.batch import Batch
from rdro_jax.train import completion_logps


def bench_reference(size: Size) -> dict[str, dict[str, float]]:
    """Tokens per CPU-second of a step on full rows, and the bytes of its parameters, moments and batch."""
    examples = make_examples(size, np.full(size.rows, size.seq))
    batch = batch_of(examples, [[row] for row in range(size.rows)], size)
    programs = {"cached": compile_cached(size, batch), "online": compile_online(size, batch)}
    costs = alternate({name: run for name, (_, run) in programs.items()}, size.repeats)
    return {
        name: {
            "seconds": costs[name].seconds,
            "cpu_seconds": costs[name].cpu_seconds,
            "tokens_per_cpu_second": size.rows * size.seq / costs[name].cpu_seconds,
            "tokens_over_online": costs["online"].cpu_seconds / costs[name].cpu_seconds,
            "argument_bytes": held,
        }
        for name, (held, _) in programs.items()
    }


def compile_cached(size: Size, batch: Batch) -> tuple[int, Callable[[], Any]]:
    """Bytes of its arguments, and a function that makes one step with the log-probs that the batch holds."""
    step, state = make_step(size)
    program = step.lower(state, batch).compile()
    return program.memory_analysis().argument_size_in_bytes, lambda: program(state, batch)


def compile_online(size: Size, batch: Batch) -> tuple[int, Callable[[], Any]]:
    """Bytes of its arguments, and a function that makes one step whose log-probs a reference model computes in it."""
    step, state = make_step(size)
    model = make_model(size)
    reference = jax.tree.map(jnp.copy, state.params)

    @jax.jit
    def online(state, reference, batch):
        return step(state, batch._replace(reference_logps=completion_logps(reference, model, batch)))

    program = online.lower(state, reference, batch).compile()
    return program.memory_analysis().argument_size_in_bytes, lambda: program(state, reference, batch)
