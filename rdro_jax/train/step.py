"""The train step: a pure function of (state, batch), jitted by the caller."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rdro_jax.batch import Batch
from rdro_jax.losses import LossFunction, LossInputs, completion_lengths
from rdro_jax.train.metrics import example_sums
from rdro_jax.train.state import TrainState

Forward = Callable[[Any, Batch], Float[Array, "rows slots"]]
"""(params, batch) -> summed completion log-probabilities in nats, float32."""
Metrics = dict[str, Float[Array, ""]]
"""Sums over the global batch, reduced to means on the host by `metrics.summarise`."""


def make_train_step(
    forward: Forward, loss: LossFunction, optimizer: optax.GradientTransformation, *, num_microbatches: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step as a pure function (state, batch) -> (state, metrics).

    Micro-batches are walked by a scan; values times weights are summed, weights are summed, and one division by the
    global weight ends it. Hence 1 x B = k x (B/k), and one device = many, for every loss whose values are per example.

    `metrics` holds sums: `loss` and `weight`, those of `train.metrics.example_sums`, and `grad_norm` (before clipping).
    """

    def objective(params, batch):
        inputs = loss_inputs(forward(params, batch), batch)
        values, weights = loss(inputs)
        total = jnp.sum(values * weights)
        places = {"tokens": jnp.sum(batch.segment_ids > 0), "places": batch.segment_ids.size}
        sums = example_sums(inputs, loss) | {"loss": total, "weight": jnp.sum(weights)} | places
        return total, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sums)

    def gradients(params, batch):
        (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(params, batch)
        # float32 sums whatever the parameters' type: bfloat16 would lose the later micro-batches.
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums

    def summed_gradients(params, batch):
        if num_microbatches == 1:
            return gradients(params, batch)
        parts = _split(batch, num_microbatches)
        first = jax.tree.map(lambda x: x[0], parts)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradients, params, first))
        add = lambda total, part: (jax.tree.map(jnp.add, total, gradients(params, part)), None)  # noqa: E731
        return jax.lax.scan(add, nothing, parts)[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, sums = summed_gradients(state.params, batch)
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums | {"grad_norm": optax.tree.norm(grads)}

    return train_step


def loss_inputs(policy_logps: Float[Array, "rows slots"], batch: Batch) -> LossInputs:
    """Flatten packed rows to examples."""
    return LossInputs(
        policy_logps=policy_logps.reshape(-1),
        reference_logps=batch.reference_logps.reshape(-1),
        lengths=completion_lengths(batch).reshape(-1),
        desirable=batch.desirable.reshape(-1),
        weight=batch.weight.reshape(-1),
    )


def _split(batch: Batch, parts: int) -> Batch:
    """Leading axis [rows] -> [parts, rows / parts], each part taking its rows evenly from every device's block."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)
