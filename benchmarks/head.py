"""The log-prob head: vocabulary in blocks against all logits at once, forward and backward."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.sizes import Size
from benchmarks.timing import alternate
from rdro_jax.losses import token_logps

Logps = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""(hidden, head, targets, scored) -> log-probability of each token."""


def log_softmax_logps(hidden: jax.Array, head: jax.Array, targets: jax.Array, scored: jax.Array) -> jax.Array:
    """One entry of log softmax over [rows, seq, vocab], as most trainers write it; head as [d_model, vocab]."""
    return jnp.where(scored, picked(jax.nn.log_softmax(hidden @ head), targets), 0)


def logsumexp_logps(hidden: jax.Array, head: jax.Array, targets: jax.Array, scored: jax.Array) -> jax.Array:
    """One logit less the log of the sum over the vocabulary: the leanest dense form."""
    logits = hidden @ head
    return jnp.where(scored, picked(logits, targets) - jax.nn.logsumexp(logits, axis=-1), 0)


def picked(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """Each token's entry of its target."""
    return jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]


VARIANTS: dict[str, tuple[Logps, tuple[int, ...], float]] = {
    "blocked": (token_logps, (0, 1), 1.0),
    "60 % scored": (token_logps, (0, 1), 0.6),
    "30 % scored": (token_logps, (0, 1), 0.3),
    "frozen head": (token_logps, (0,), 1.0),
    "dense": (log_softmax_logps, (0, 1), 1.0),
    "dense, lean": (logsumexp_logps, (0, 1), 1.0),
}
"""Name: how, gradients of which arguments, share of the tokens that have a loss."""


def bench_head(size: Size) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of temporary memory of each variant, with its gradients."""
    compiled = {name: compile_head(size, *variant) for name, variant in VARIANTS.items()}
    costs = alternate({name: run for name, (_, run) in compiled.items()}, size.repeats)
    return {name: costs[name]._asdict() | {"temp_bytes": temp} for name, (temp, _) in compiled.items()}


def bench_vocabularies(size: Size) -> dict[str, dict[str, float]]:
    """The blocked head on the same tokens over growing vocabularies, beside the bytes of all logits in float32."""
    compiled = {vocab: compile_head(replace(size, vocab=vocab), *VARIANTS["blocked"]) for vocab in size.vocabs}
    # The largest takes twenty times as long as the smallest: fewer turns than elsewhere.
    costs = alternate({str(vocab): run for vocab, (_, run) in compiled.items()}, min(size.repeats, 3))
    return {
        f"{vocab:,} tokens": {
            "vocab": vocab,
            **costs[str(vocab)]._asdict(),
            "temp_bytes": temp,
            "logits_bytes": 4 * size.rows * size.seq * vocab,
        }
        for vocab, (temp, _) in compiled.items()
    }


def compile_head(size: Size, logps: Logps, wanted: tuple[int, ...], share: float) -> tuple[int, Callable]:
    """Bytes of temporary memory, and a function that computes value and gradients."""
    keys = jax.random.split(jax.random.key(size.seed), 4)
    tokens = size.rows, size.seq
    hidden = jax.random.normal(keys[0], (*tokens, size.d_model))
    head = 0.02 * jax.random.normal(keys[1], (size.vocab, size.d_model))
    targets = jax.random.randint(keys[2], tokens, 0, size.vocab)
    scored = jax.random.uniform(keys[3], tokens) < share
    arguments = (hidden, head if logps is token_logps else head.T, targets, scored)
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
