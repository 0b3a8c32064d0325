"""Completion log-probabilities from hidden states; `[rows, seq, vocab]` never exists.

Sums over the completions of packed rows; `losses/head.py` has the log-probability of every token.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdro_jax.batch import Batch
from rdro_jax.losses.head import HeadSplit, token_logps


def completion_logps_from_hidden(
    hidden: Float[Array, "rows seq d_model"],
    head: Float[Array, "vocab d_model"],
    batch: Batch,
    *,
    split: HeadSplit | None = None,
) -> Float[Array, "rows slots"]:
    """Log-probability of every completion of packed rows, in nats, float32; 0 for an empty slot.

    `hidden[r, t]` predicts `batch.tokens[r, t + 1]`; the targets scored are those where `batch.loss_mask` is True.
    `split` says how the arrays lie on a mesh, where they do.

    >>> import jax.numpy as jnp, rdro_jax as rj
    >>> batch = rj.make_batch([[5, 6]], [[7, 8]], [True])
    >>> hidden, head = jnp.zeros((1, 4, 8)), jnp.zeros((10, 8))  # every token as likely as any other
    >>> print(completion_logps_from_hidden(hidden, head, batch).round(3))  # 2 log(1 / 10) nats
    [[-4.605]]
    """
    # Targets are taken over the whole row, before anything is split: one at the end of a part is the next part's first.
    targets = jnp.roll(batch.tokens, -1, axis=1)
    return sum_by_slot(token_logps(hidden, head, targets, jnp.asarray(batch.loss_mask), split=split), batch)


def completion_lengths(batch: Batch) -> Int[Array, "rows slots"]:
    """Scored completion tokens of every slot.

    >>> import rdro_jax as rj
    >>> completion_lengths(rj.make_batch([[5, 6], [3]], [[7, 8], [4]], [True, False], slots=2)).tolist()
    [[2, 1]]
    """
    return sum_by_slot(jnp.ones(batch.tokens.shape, jnp.float32), batch).astype(jnp.int32)


def sum_by_slot(values: Float[Array, "rows seq"], batch: Batch) -> Float[Array, "rows slots"]:
    """Sum over the completion tokens of every slot, in float32."""
    segment_of_slot = jnp.arange(1, batch.desirable.shape[1] + 1)
    member = (batch.segment_ids[:, :, None] == segment_of_slot) & batch.loss_mask[:, :, None]
    # where, not multiplication: what a masked position holds must not reach the sum, NaN included.
    return jnp.sum(jnp.where(member, values[:, :, None], 0.0), axis=1, dtype=jnp.float32)
