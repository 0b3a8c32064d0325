"""The batch: the one shape in which examples travel from the data to the loss."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Batch(NamedTuple):
    """Packed rows, numpy on the host and jax in a step. `slots` is the most examples that share a row.

    Position `t` of a row predicts `tokens[t + 1]`, hence `loss_mask[t]` speaks of the *target*: it is True where
    `tokens[t + 1]` is a completion token of the same segment. The last position of a row predicts nothing.

    One row of two examples (prompts 5 6 and 3, completions 7 8 and 4) and one place of padding:

    >>> import jax.numpy as jnp
    >>> batch = Batch(
    ...     tokens=jnp.array([[5, 6, 7, 8, 3, 4, 0]]),
    ...     positions=jnp.array([[0, 1, 2, 3, 0, 1, 0]]),
    ...     segment_ids=jnp.array([[1, 1, 1, 1, 2, 2, 0]]),
    ...     loss_mask=jnp.array([[0, 1, 1, 0, 1, 0, 0]], bool),
    ...     desirable=jnp.array([[True, False]]),
    ...     weight=jnp.ones((1, 2)),
    ...     reference_logps=jnp.array([[-7.1, -3.4]]),
    ... )
    >>> batch.tokens.shape, batch.weight.shape  # [rows, seq], [rows, slots]
    ((1, 7), (1, 2))
    """

    tokens: Int[Array, "rows seq"]
    """Token ids; 0 where `segment_ids` is 0."""
    positions: Int[Array, "rows seq"]
    """Position of a token inside its example: restarts at 0 in every segment."""
    segment_ids: Int[Array, "rows seq"]
    """0 is padding; example in slot `k` of the row has segment id `k + 1`."""
    loss_mask: Bool[Array, "rows seq"]
    """True where the target is a completion token."""
    desirable: Bool[Array, "rows slots"]
    """The label of each example. A pair is two adjacent slots: chosen, rejected."""
    weight: Float[Array, "rows slots"]
    """Weight of each example; 0 for an empty slot."""
    reference_logps: Float[Array, "rows slots"]
    """Completion log-probability under the reference, in nats; 0 for an empty slot, NaN where not yet known."""
    prompt_alpha: Float[Array, "rows slots"] | None = None
    """Share of desirable completions of each example's prompt; 0.5 for an empty slot. None = not asked for."""
    mismatched: "Batch | None" = None
    """Examples in rows of the same shape, each the prompt of one example of this global batch and the completion of
    another, for KTO's KL. Slots are not those of the examples above. None = not asked for."""
