"""Log-probability of every target token, from hidden states and the table that scores the vocabulary.

The head is walked in vocabulary blocks, forward and backward, and within a block the tokens in chunks: those without a
loss are sorted behind the others and their chunks are left out. The backward pass recomputes each block's logits,
writes each block of the head's gradient once, and keeps only the log-normaliser of every token between the two.

On a mesh every device walks its own share of the vocabulary, gathers one block at a time over the axes that split the
head's width, and scatters that block's gradient back; maxima and sums then meet across the vocabulary axis once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

MAX_BLOCK = 8192
"""Vocabulary entries per block: 32 KiB of float32 logits per token at the most."""
MAX_CHUNKS = 8
"""Most parts in which the tokens of a block are taken: more leave out more tokens, and make smaller products."""
SHORTEST_CHUNK = 256
"""Tokens below which a chunk is not worth its own matrix products; of wide models a quarter of d_model.

Every chunk reads and writes the block's gradient: a wide one leaves the caches, and a chunk has to be worth that."""


class HeadSplit(NamedTuple):
    """How the operands lie on a mesh; every axis named is one of the mesh, and several may share a dimension."""

    mesh: Mesh
    tokens: tuple[tuple[str, ...], ...]
    """Axes that split each dimension of the targets."""
    vocab: tuple[str, ...]
    """Axes that split the head's vocabulary."""
    width: tuple[str, ...]
    """Axes that split the head's d_model, gathered a block at a time."""


def token_logps(
    hidden: Float[Array, "*tokens d_model"],
    head: Float[Array, "vocab d_model"],
    targets: Int[Array, "*tokens"],
    scored: Bool[Array, "*tokens"] | None = None,
    *,
    max_block: int | None = None,
    split: HeadSplit | None = None,
) -> Float[Array, "*tokens"]:
    """log softmax(hidden @ head.T)[target] of every token, in nats, float32 whatever the operands' dtype.

    Where `scored` is False the answer is 0, and little or no time is spent on it. Operands of the matrix products have
    the type of `hidden`, accumulation is float32. No gradient of the head is computed where none is asked for.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.zeros((2, 4)), jnp.ones((10, 4))  # [tokens, d_model], [vocab, d_model]
    >>> [f"{value:.3f}" for value in token_logps(hidden, head, jnp.array([3, 9]))]  # -log 10 nats
    ['-2.303', '-2.303']
    """
    scored = jnp.ones(targets.shape, bool) if scored is None else scored
    return _logps(*map(jnp.asarray, (hidden, head, targets, scored)), max_block or MAX_BLOCK, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _logps(hidden, head, targets, scored, max_block, split):
    return _spread_forward(hidden, head, targets, scored, max_block, split)[0]


def _logps_fwd(hidden, head, targets, scored, max_block, split):
    # Whether the head learns decides what the backward pass computes: it is structure, not data, hence no truth value.
    learns = () if head.perturbed else None
    operands = (hidden.value, head.value, targets.value, scored.value)
    logps, log_normaliser = _spread_forward(*operands, max_block, split)
    return logps, (operands, log_normaliser, learns)


def _logps_bwd(max_block, split, residuals, cotangent):
    operands, log_normaliser, learns = residuals
    if isinstance(cotangent, SymbolicZero):
        return None, None, None, None
    local = functools.partial(_backward, max_block=max_block, axes=_live_axes(split), learns=learns is not None)
    hidden, head, tokens = _specs(split)
    spread = _spread(local, split, (hidden, head, tokens, tokens, tokens, tokens), (hidden, head))
    return *spread(*operands, log_normaliser, cotangent), None, None


_logps.defvjp(_logps_fwd, _logps_bwd, symbolic_zeros=True)


def _spread_forward(hidden, head, targets, scored, max_block, split):
    local = functools.partial(_forward, max_block=max_block, axes=_live_axes(split))
    at_hidden, at_head, at_tokens = _specs(split)
    spread = _spread(local, split, (at_hidden, at_head, at_tokens, at_tokens), (at_tokens, at_tokens))
    return spread(hidden, head, targets, scored)


class _Axes(NamedTuple):
    """Names of the mesh axes in use by what they split; empty on one device."""

    tokens: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()


def _live_axes(split: HeadSplit | None) -> _Axes:
    if split is None:
        return _Axes()
    live = lambda axes: tuple(axis for axis in axes if split.mesh.shape[axis] > 1)  # noqa: E731
    return _Axes(live(sum(split.tokens, ())), live(split.vocab), live(split.width))


def _specs(split: HeadSplit | None) -> tuple[Any, Any, Any]:
    """Where hidden states, head and what there is one of per token lie."""
    if split is None:
        return None, None, None
    spec = PartitionSpec
    return spec(*split.tokens, None), spec(split.vocab, split.width), spec(*split.tokens)


def _spread(local: Callable, split: HeadSplit | None, ins: Any, outs: Any) -> Callable:
    """`local` run by every device on its own part; no derivative is taken through it."""
    if split is None:
        return local
    return jax.shard_map(local, mesh=split.mesh, in_specs=ins, out_specs=outs, check_vma=False)


class _Blocks(NamedTuple):
    """A device's share of the vocabulary in blocks of one size; the last one may repeat entries of the one before."""

    count: int
    size: int
    vocab: int

    @property
    def even(self) -> bool:
        """No entry is in two blocks."""
        return self.count * self.size == self.vocab


def _blocks(vocab: int, max_block: int) -> _Blocks:
    """Fewest equal blocks of at most `max_block`; where none near that divides, the last block overlaps."""
    fewest = -(-vocab // max_block)
    count = next((n for n in range(fewest, 4 * fewest) if vocab % n == 0), fewest)
    return _Blocks(count, -(-vocab // count), vocab)


def _block(head, number, blocks: _Blocks, dtype, axes: _Axes):
    """Entries of one block in the type of the products, whole in width; where they begin; which of them are new."""
    start = jnp.minimum(number * blocks.size, blocks.vocab - blocks.size)
    # Cast block by block: a bfloat16 copy of a whole float32 head would be the largest buffer of the step.
    block = jax.lax.dynamic_slice_in_dim(head, start, blocks.size).astype(dtype)
    if axes.width:
        block = jax.lax.all_gather(block, axes.width, axis=1, tiled=True)
    return block, start, start + jnp.arange(blocks.size) >= number * blocks.size


class _Chunks(NamedTuple):
    """Tokens with a loss before those without, in chunks of one length."""

    order: Int[Array, "tokens"]
    """Number of the token at each place."""
    used: Int[Array, ""]
    """Chunks that hold a token with a loss."""
    shape: tuple[int, int]

    def cut(self, x: Array) -> Array:
        """[tokens, ...] as [chunks, length, ...], sorted."""
        return x[self.order].reshape(*self.shape, *x.shape[1:])

    def join(self, x: Array) -> Array:
        """[chunks, length, ...] as [tokens, ...], in the order of the row."""
        flat = x.reshape(-1, *x.shape[2:])
        return jnp.zeros_like(flat).at[self.order].set(flat, unique_indices=True)


def _chunks(scored: Bool[Array, "tokens"], d_model: int) -> _Chunks:
    tokens, shortest = scored.shape[0], max(SHORTEST_CHUNK, d_model // 4)
    fits = lambda n: tokens % n == 0 and tokens // n >= shortest  # noqa: E731
    count = next((n for n in range(MAX_CHUNKS, 1, -1) if fits(n)), 1)
    length = tokens // count
    return _Chunks(jnp.argsort(~scored, stable=True), -(-jnp.sum(scored) // length), (count, length))


def _logits(rows, block):
    return jax.lax.dot_general(rows, block, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _forward(hidden, head, targets, scored, *, max_block: int, axes: _Axes):
    """Log-probs and log-normalisers of a device's tokens over the whole vocabulary."""
    shape, blocks, chunks = (
        targets.shape,
        _blocks(head.shape[0], max_block),
        _chunks(scored.reshape(-1), hidden.shape[-1]),
    )
    rows = chunks.cut(hidden.reshape(-1, hidden.shape[-1]))
    wanted = chunks.cut(targets.reshape(-1) - _first(axes, blocks))

    def visit_block(number, carry):
        block, start, new = _block(head, number, blocks, hidden.dtype, axes)

        def visit_chunk(at, carry):
            high, total, picked = carry
            logits = _logits(rows[at], block)
            logits = logits if blocks.even else jnp.where(new, logits, -jnp.inf)
            higher = jnp.maximum(high[at], jnp.max(logits, axis=1))
            summed = total[at] * jnp.exp(high[at] - higher) + jnp.sum(jnp.exp(logits - higher[:, None]), axis=1)
            column = wanted[at] - start
            here = jnp.take_along_axis(logits, jnp.clip(column, 0, blocks.size - 1)[:, None], axis=1)[:, 0]
            inside = (column >= 0) & (column < blocks.size) & (here > -jnp.inf)
            found = jnp.where(inside, here, picked[at])
            return high.at[at].set(higher), total.at[at].set(summed), picked.at[at].set(found)

        return jax.lax.fori_loop(0, chunks.used, visit_chunk, carry)

    nothing = jnp.zeros(chunks.shape)
    high, total, picked = jax.lax.fori_loop(0, blocks.count, visit_block, (nothing - jnp.inf, nothing, nothing))
    if axes.vocab:
        highest = jax.lax.pmax(high, axes.vocab)
        total, picked = jax.lax.psum((total * jnp.exp(high - highest), picked), axes.vocab)
        high = highest
    log_normaliser = chunks.join(high + jnp.log(total)).reshape(shape)
    # where, not multiplication: chunks that nobody visited hold no number.
    logps = jnp.where(scored, chunks.join(picked).reshape(shape) - log_normaliser, 0.0)
    return logps, log_normaliser


def _first(axes: _Axes, blocks: _Blocks):
    """Vocabulary entry at which a device's share begins."""
    return jax.lax.axis_index(axes.vocab) * blocks.vocab if axes.vocab else 0


def _backward(hidden, head, targets, scored, log_normaliser, cotangent, *, max_block: int, axes: _Axes, learns: bool):
    """Gradients of a device's tokens and of its share of the head; the latter is None unless the head learns."""
    blocks, chunks = _blocks(head.shape[0], max_block), _chunks(scored.reshape(-1), hidden.shape[-1])
    rows = chunks.cut(hidden.reshape(-1, hidden.shape[-1]))
    wanted = chunks.cut(targets.reshape(-1) - _first(axes, blocks))
    normaliser = chunks.cut(log_normaliser.reshape(-1))
    pull = chunks.cut(jnp.where(scored, cotangent, 0.0).reshape(-1))

    def visit_block(number, carry):
        d_rows, d_head = carry
        block, start, new = _block(head, number, blocks, hidden.dtype, axes)
        ids = start + jnp.arange(blocks.size)

        def visit_chunk(at, carry):
            d_rows, d_block = carry
            probabilities = jnp.exp(_logits(rows[at], block) - normaliser[at][:, None])
            d_logits = pull[at][:, None] * ((wanted[at][:, None] == ids) - probabilities)
            d_logits = d_logits.astype(hidden.dtype)
            once = d_logits if blocks.even else jnp.where(new, d_logits, 0)
            d_rows = d_rows.at[at].add(jnp.dot(once, block, preferred_element_type=jnp.float32))
            if learns:
                product = jax.lax.dot_general(
                    d_logits, rows[at], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
                )
                d_block += product.reshape(blocks.size, *d_block.shape[::2]).swapaxes(0, 1)
            return d_rows, d_block

        # Parts of the width lead: a TPU scatters a sum over the leading axis only, else every device gets all of it.
        parts = (block.shape[1] // head.shape[1], blocks.size, head.shape[1])
        d_block = jnp.zeros(parts, jnp.float32) if learns else None
        d_rows, d_block = jax.lax.fori_loop(0, chunks.used, visit_chunk, (d_rows, d_block))
        if d_head is not None:
            # An entry that two blocks hold is written twice, the same both times.
            d_head = jax.lax.dynamic_update_slice_in_dim(d_head, _summed(d_block, axes).astype(head.dtype), start, 0)
        return d_rows, d_head

    nothing = (jnp.zeros(rows.shape, jnp.float32), jnp.zeros_like(head) if learns else None)
    d_rows, d_head = jax.lax.fori_loop(0, blocks.count, visit_block, nothing)
    if axes.vocab:
        d_rows = jax.lax.psum(d_rows, axes.vocab)
    return chunks.join(d_rows).reshape(hidden.shape).astype(hidden.dtype), d_head


def _summed(d_block: Float[Array, "parts entries width"], axes: _Axes) -> Float[Array, "entries width"]:
    """A block's gradient over all devices' tokens, each device keeping its own part of the width."""
    mine = jax.lax.psum_scatter(d_block, axes.width, scatter_dimension=0) if axes.width else d_block[0]
    others = tuple(axis for axis in axes.tokens if axis not in axes.width)
    return jax.lax.psum(mine, others) if others else mine
