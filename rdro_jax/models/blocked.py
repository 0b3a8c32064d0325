"""Attention that visits those blocks of the score matrix that some query sees, and keeps none of them.

A packed row of short examples needs few of its blocks: those on the diagonal and where an example crosses one. The
pairs of a block of queries and a block of keys are listed from the mask, row by row, and walked by one loop forward and
one backward; the backward pass recomputes the scores of a block from the log-normaliser of every query.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BLOCK = 64
"""Queries, and keys, of a block: fewer leave out more of the scores, and make smaller products."""
_LEAST = jnp.finfo(jnp.float32).min
"""Score of what is not seen: finite, so that its exponential is 0 and no gradient is NaN."""


@jax.custom_vjp
def attend_blocked(
    queries: Float[Array, "rows heads queries head_dim"],
    keys: Float[Array, "rows kv_heads seq head_dim"],
    values: Float[Array, "rows kv_heads seq head_dim"],
    mask: Bool[Array, "rows queries seq"],
) -> Float[Array, "rows heads queries head_dim"]:
    """Softmax-weighted mean of the values each query may see; queries and keys are multiples of `BLOCK`.

    Every query has to see a key. Scores, softmax and sums are float32.
    Source: the online softmax of Milakov & Gimelshein 2018, and its backward pass as in Dao et al. 2022.
    """
    return _forward(queries, keys, values, mask)[0]


class Pairs(NamedTuple):
    """Blocks of scores that hold anything, the first `count` of each list."""

    row: Int[Array, "pairs"]
    query: Int[Array, "pairs"]
    """First query of the block."""
    key: Int[Array, "pairs"]
    """First key of the block."""
    count: Int[Array, ""]


def seen_pairs(mask: Bool[Array, "rows queries seq"]) -> Pairs:
    """Where a loop has to go."""
    rows, queries, seq = mask.shape
    seen = mask.reshape(rows, queries // BLOCK, BLOCK, seq // BLOCK, BLOCK).any((2, 4))
    row, query, key = jnp.nonzero(seen, size=seen.size)
    return Pairs(row, query * BLOCK, key * BLOCK, seen.sum())


def _cut(x: Array, row: Array, start: Array) -> Array:
    """[rows, kv_heads, ..., seq, width] -> [kv_heads, ..., BLOCK, width]."""
    at = (row, *[0] * (x.ndim - 3), start, 0)
    return jax.lax.dynamic_slice(x, at, (1, *x.shape[1:-2], BLOCK, x.shape[-1]))[0]


def _put(x: Array, block: Array, row: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice(x, block[None], (row, *[0] * (x.ndim - 3), start, 0))


def _grouped(x: Float[Array, "rows heads queries width"], kv_heads: int) -> Array:
    """[rows, kv_heads, group, queries, width]: the query heads that share a key head side by side."""
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """Per key head the product over one axis of each, in float32. The heads of a group are taken as more queries."""
    left, right = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (left, right))
    axes = (((left_axis,), (right_axis,)), ((0,), (0,)))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def _scores(queries, keys, mask, row, query, key) -> Float[Array, "kv_heads group block block"]:
    scores = _product(queries, keys, 2, 2).reshape(*queries.shape[:-1], BLOCK)
    return jnp.where(jax.lax.dynamic_slice(mask, (row, query, key), (1, BLOCK, BLOCK)), scores, _LEAST)


def _forward(queries, keys, values, mask):
    grouped, pairs = _grouped(queries * queries.shape[-1] ** -0.5, keys.shape[1]), seen_pairs(mask)

    def visit(number, carry):
        row, query, key = pairs.row[number], pairs.query[number], pairs.key[number]
        high, total, mixed = (_cut(x, row, query) for x in carry)
        scores = _scores(_cut(grouped, row, query), _cut(keys, row, key), mask, row, query, key)
        higher = jnp.maximum(high, scores.max(-1, keepdims=True))
        weights, kept = jnp.exp(scores - higher), jnp.exp(high - higher)
        more = _product(weights.astype(values.dtype), _cut(values, row, key), 2, 1).reshape(mixed.shape)
        new = higher, total * kept + weights.sum(-1, keepdims=True), mixed * kept + more
        return tuple(_put(x, block, row, query) for x, block in zip(carry, new, strict=True))

    nothing = jnp.zeros((*grouped.shape[:-1], 1), jnp.float32)
    start = (nothing + _LEAST, nothing, jnp.zeros(grouped.shape, jnp.float32))
    high, total, mixed = jax.lax.fori_loop(0, pairs.count, visit, start)
    mixed = (mixed / total).reshape(queries.shape).astype(queries.dtype)
    return mixed, (queries, keys, values, mask, mixed, high + jnp.log(total))


def _backward(residuals, cotangent):
    queries, keys, values, mask, mixed, log_normaliser = residuals
    scale, pairs = queries.shape[-1] ** -0.5, seen_pairs(mask)
    grouped, pull = _grouped(queries * scale, keys.shape[1]), _grouped(cotangent, keys.shape[1])
    # What the softmax takes off every score's cotangent: the mean of them by their weights.
    mean = _grouped((cotangent * mixed).astype(jnp.float32).sum(-1, keepdims=True), keys.shape[1])

    def visit(number, carry):
        row, query, key = pairs.row[number], pairs.query[number], pairs.key[number]
        own, pulled = _cut(grouped, row, query), _cut(pull, row, query)
        near, value = _cut(keys, row, key), _cut(values, row, key)
        weights = jnp.exp(_scores(own, near, mask, row, query, key) - _cut(log_normaliser, row, query))
        d_scores = weights * (_product(pulled, value, 2, 2).reshape(weights.shape) - _cut(mean, row, query))
        d_scores, weights = d_scores.astype(own.dtype), weights.astype(value.dtype)
        more = (
            (query, _product(d_scores, near, 2, 1).reshape(own.shape)),
            (key, _product(d_scores, own, 1, 1)),
            (key, _product(weights, pulled, 1, 1)),
        )
        return tuple(_put(x, _cut(x, row, at) + block, row, at) for x, (at, block) in zip(carry, more, strict=True))

    nothing = tuple(jnp.zeros(x.shape, jnp.float32) for x in (grouped, keys, values))
    d_queries, d_keys, d_values = jax.lax.fori_loop(0, pairs.count, visit, nothing)
    d_queries = (d_queries * scale).reshape(queries.shape).astype(queries.dtype)
    return d_queries, d_keys.astype(keys.dtype), d_values.astype(values.dtype), None


attend_blocked.defvjp(_forward, _backward)
