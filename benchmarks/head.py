"""The log-prob head: vocabulary in blocks against all logits at once, forward and backward."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.sizes import Size
from benchmarks.timing import alternate
from rdro_jax.losses import token_logps

Logps = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(hidden, head, targets, scored) -> log-probability of each token."""


def dense_logps(hidden: jax.Array, head: jax.Array, targets: jax.Array, scored: jax.Array) -> jax.Array:
    """log softmax over an array of [tokens, vocab], head as [d_model, vocab]."""
    logps = jax.nn.log_softmax(hidden @ head)
    return jnp.where(scored, jnp.take_along_axis(logps, targets[:, None], axis=1)[:, 0], 0)


VARIANTS: dict[str, tuple[Logps, tuple[int, ...], float]] = {
    "blocked": (token_logps, (0, 1), 1.0),
    "60 % scored": (token_logps, (0, 1), 0.6),
    "30 % scored": (token_logps, (0, 1), 0.3),
    "frozen head": (token_logps, (0,), 1.0),
    "dense": (dense_logps, (0, 1), 1.0),
}
"""Name: how, gradients of which arguments, share of the tokens that have a loss."""


def bench_head(size: Size) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of temporary memory of each variant, with its gradients."""
    compiled = {name: compile_head(size, *variant) for name, variant in VARIANTS.items()}
    costs = alternate({name: run for name, (_, run) in compiled.items()}, size.repeats)
    return {name: costs[name]._asdict() | {"temp_bytes": temp} for name, (temp, _) in compiled.items()}


def compile_head(size: Size, logps: Logps, wanted: tuple[int, ...], share: float) -> tuple[int, Callable]:
    """Bytes of temporary memory, and a function that computes value and gradients."""
    keys = jax.random.split(jax.random.key(size.seed), 4)
    tokens = size.rows * size.seq
    hidden = jax.random.normal(keys[0], (tokens, size.d_model))
    head = 0.02 * jax.random.normal(keys[1], (size.vocab, size.d_model))
    targets = jax.random.randint(keys[2], (tokens,), 0, size.vocab)
    scored = jax.random.uniform(keys[3], (tokens,)) < share
    arguments = (hidden, head.T if logps is dense_logps else head, targets, scored)
    summed = jax.value_and_grad(lambda *arrays: logps(*arrays).sum(), wanted)
    program = jax.jit(summed).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes, lambda: program(*arguments)


def main() -> None:
    """Qwen 2.5's vocabulary: `python -m benchmarks.head`."""
    size = Size(d_model=256, vocab=151_936, rows=2, seq=1024, repeats=3)
    for name, figures in bench_head(size).items():
        mib = figures["temp_bytes"] / 2**20
        print(f"{name:12} {mib:8,.0f} MiB {figures['seconds']:6.2f} s {figures['cpu_seconds']:6.2f} CPU-s")


if __name__ == "__main__":
    main()
