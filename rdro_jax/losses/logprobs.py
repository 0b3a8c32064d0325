"""Completion log-probabilities from hidden states; `[rows, seq, vocab]` never exists.

The head is walked in vocabulary blocks, forward and backward. The backward pass recomputes each block's logits, writes
each block of the head's gradient once, and keeps only the log-normaliser of every token between the two.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdro_jax.batch import Batch

MAX_BLOCK = 8192
"""Vocabulary entries per block: 32 KiB of float32 logits per token at the most."""


def completion_logps_from_hidden(
    hidden: Float[Array, "rows seq d_model"], head: Float[Array, "vocab d_model"], batch: Batch
) -> Float[Array, "rows slots"]:
    """Log-probability of every completion of packed rows, in nats, float32; 0 for an empty slot.

    `hidden[r, t]` predicts `batch.tokens[r, t + 1]`; the targets scored are those where `batch.loss_mask` is True.

    >>> import jax.numpy as jnp, rdro_jax as rj
    >>> ones = jnp.ones((1, 4), int)
    >>> batch = rj.Batch(
    ...     tokens=jnp.array([[5, 6, 7, 8]]),
    ...     positions=jnp.arange(4)[None],
    ...     segment_ids=ones,
    ...     loss_mask=jnp.array([[False, True, True, False]]),  # tokens 7 and 8 are the completion
    ...     desirable=jnp.array([[True]]),
    ...     weight=jnp.ones((1, 1)),
    ...     reference_logps=jnp.zeros((1, 1)),
    ... )
    >>> hidden, head = jnp.zeros((1, 4, 8)), jnp.zeros((10, 8))  # every token as likely as any other
    >>> print(completion_logps_from_hidden(hidden, head, batch).round(3))  # 2 log(1 / 10) nats
    [[-4.605]]
    """
    rows, seq, d_model = hidden.shape
    targets = jnp.roll(batch.tokens, -1, axis=1)
    logps = token_logps(hidden.reshape(rows * seq, d_model), head, targets.reshape(rows * seq))
    return sum_by_slot(logps.reshape(rows, seq), batch)


def completion_lengths(batch: Batch) -> Int[Array, "rows slots"]:
    """Scored completion tokens of every slot.

    >>> import jax.numpy as jnp, rdro_jax as rj
    >>> batch = rj.Batch(
    ...     tokens=jnp.array([[5, 6, 7, 8, 3, 4]]),
    ...     positions=jnp.array([[0, 1, 2, 3, 0, 1]]),
    ...     segment_ids=jnp.array([[1, 1, 1, 1, 2, 2]]),
    ...     loss_mask=jnp.array([[0, 1, 1, 0, 1, 0]], bool),
    ...     desirable=jnp.array([[True, False]]),
    ...     weight=jnp.ones((1, 2)),
    ...     reference_logps=jnp.zeros((1, 2)),
    ... )
    >>> completion_lengths(batch).tolist()
    [[2, 1]]
    """
    return sum_by_slot(jnp.ones(batch.tokens.shape, jnp.float32), batch).astype(jnp.int32)


def sum_by_slot(values: Float[Array, "rows seq"], batch: Batch) -> Float[Array, "rows slots"]:
    """Sum over the completion tokens of every slot, in float32."""
    segment_of_slot = jnp.arange(1, batch.desirable.shape[1] + 1)
    member = (batch.segment_ids[:, :, None] == segment_of_slot) & batch.loss_mask[:, :, None]
    # where, not multiplication: what a masked position holds must not reach the sum, NaN included.
    return jnp.sum(jnp.where(member, values[:, :, None], 0.0), axis=1, dtype=jnp.float32)


def token_logps(
    hidden: Float[Array, "tokens d_model"],
    head: Float[Array, "vocab d_model"],
    targets: Int[Array, "tokens"],
    *,
    max_block: int = MAX_BLOCK,
) -> Float[Array, "tokens"]:
    """log softmax(hidden @ head.T)[target] of every token, in nats, float32 whatever the operands' dtype.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.zeros((2, 4)), jnp.ones((10, 4))  # [tokens, d_model], [vocab, d_model]
    >>> [f"{value:.3f}" for value in token_logps(hidden, head, jnp.array([3, 9]))]  # -log 10 nats
    ['-2.303', '-2.303']
    """
    vocab = head.shape[0]
    blocks = _block_count(vocab, max_block)
    size = -(-vocab // blocks)
    padded = jnp.pad(head, ((0, blocks * size - vocab), (0, 0))) if blocks * size != vocab else head
    return _blocked_logps(hidden, padded.reshape(blocks, size, head.shape[1]), targets, vocab)


def _block_count(vocab: int, max_block: int) -> int:
    """Fewest equal blocks of at most `max_block`; a vocabulary without a divisor near that is padded instead."""
    fewest = -(-vocab // max_block)
    return next((n for n in range(fewest, 4 * fewest) if vocab % n == 0), fewest)


def _block_logits(hidden, block, first, vocab):
    """Float32 logits of one block; the entries that only pad the vocabulary are -inf."""
    # The cast is inside the loop: a bfloat16 copy of a whole float32 head would be the largest buffer of the step.
    logits = jax.lax.dot_general(
        hidden, block.astype(hidden.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    ids = first + jnp.arange(block.shape[0])
    return jnp.where(ids < vocab, logits, -jnp.inf), ids


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blocked_logps(hidden, blocks, targets, vocab):
    return _forward(hidden, blocks, targets, vocab)[0]


def _forward(hidden, blocks, targets, vocab):
    size = blocks.shape[1]

    def visit(carry, numbered_block):
        high, total, picked = carry
        number, block = numbered_block
        logits, ids = _block_logits(hidden, block, number * size, vocab)
        new_high = jnp.maximum(high, jnp.max(logits, axis=1))
        total = total * jnp.exp(high - new_high) + jnp.sum(jnp.exp(logits - new_high[:, None]), axis=1)
        inside = (targets >= ids[0]) & (targets < ids[0] + size)
        column = jnp.clip(targets - ids[0], 0, size - 1)
        here = jnp.take_along_axis(logits, column[:, None], axis=1)[:, 0]
        return (new_high, total, jnp.where(inside, here, picked)), None

    tokens = hidden.shape[0]
    start = (jnp.full(tokens, -jnp.inf), jnp.zeros(tokens), jnp.zeros(tokens))
    (high, total, picked), _ = jax.lax.scan(visit, start, (jnp.arange(blocks.shape[0]), blocks))
    log_normaliser = high + jnp.log(total)
    return picked - log_normaliser, (hidden, blocks, targets, log_normaliser)


def _backward(vocab, residuals, cotangent):
    hidden, blocks, targets, log_normaliser = residuals
    size = blocks.shape[1]

    def visit(d_hidden, numbered_block):
        number, block = numbered_block
        logits, ids = _block_logits(hidden, block, number * size, vocab)
        probabilities = jnp.exp(logits - log_normaliser[:, None])
        d_logits = cotangent[:, None] * ((targets[:, None] == ids).astype(jnp.float32) - probabilities)
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = d_hidden + jnp.dot(d_logits, block.astype(hidden.dtype), preferred_element_type=jnp.float32)
        d_block = jax.lax.dot_general(d_logits, hidden, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return d_hidden, d_block.astype(block.dtype)

    d_hidden = jnp.zeros(hidden.shape, jnp.float32)
    d_hidden, d_blocks = jax.lax.scan(visit, d_hidden, (jnp.arange(blocks.shape[0]), blocks))
    return d_hidden.astype(hidden.dtype), d_blocks, None


_blocked_logps.defvjp(_forward, _backward)
