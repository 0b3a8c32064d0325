"""The log-prob head: vocabulary in blocks against all logits at once, forward and backward."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.sizes import Size
from benchmarks.timing import alternate
from rdro_jax.losses import token_logps


def dense_logps(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """log softmax over an array of [tokens, vocab]."""
    logps = jax.nn.log_softmax(hidden @ head.T)
    return jnp.take_along_axis(logps, targets[:, None], axis=1)[:, 0]


def bench_head(size: Size) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of temporary memory of both heads, with the gradients of hidden states and head."""
    keys = jax.random.split(jax.random.key(size.seed), 3)
    tokens = size.rows * size.seq
    hidden = jax.random.normal(keys[0], (tokens, size.d_model))
    head = 0.02 * jax.random.normal(keys[1], (size.vocab, size.d_model))
    targets = jax.random.randint(keys[2], (tokens,), 0, size.vocab)
    compiled = {
        name: jax.jit(jax.value_and_grad(lambda h, w, f=logps: f(h, w, targets).sum(), (0, 1)))
        .lower(hidden, head)
        .compile()
        for name, logps in {"blocked": token_logps, "dense": dense_logps}.items()
    }
    runs = {name: lambda f=step: f(hidden, head) for name, step in compiled.items()}
    costs = alternate(runs, size.repeats)
    return {
        name: costs[name]._asdict() | {"temp_bytes": step.memory_analysis().temp_size_in_bytes}
        for name, step in compiled.items()
    }
