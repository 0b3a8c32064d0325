"""The train step: a pure function of (state, batch), jitted by the caller."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from rdro_jax.batch import Batch
from rdro_jax.losses import LossBase, LossInputs, completion_lengths
from rdro_jax.train.metrics import batch_metrics
from rdro_jax.train.state import TrainState

Forward = Callable[[Any, Batch], Float[Array, "rows slots"]]
"""(params, batch) -> summed completion log-probabilities in nats, float32."""
Assemble = Callable[[Any, TrainState, Batch], Any]
"""(trained parameters, state, batch) -> what `forward` takes, where that is more than what is trained."""
Metrics = dict[str, Float[Array, ""]]
"""Sums over the global batch, and what is no sum; `metrics.Window` makes means of them on the host."""


def make_train_step(
    forward: Forward,
    loss: LossBase,
    optimizer: optax.GradientTransformation,
    *,
    num_microbatches: int = 1,
    assemble: Assemble | None = None,
    skip_grad_norm: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """One optimizer step as a pure function (state, batch) -> (state, metrics).

    Micro-batches are walked by a scan; values times weights are summed, weights are summed, and one division by the
    global weight ends it. Statistics that couple examples are taken over the global batch first, without gradient.
    Hence 1 x B = k x (B/k), and one device = many, for every loss whose statistics are global.

    Where loss or gradient are not finite, or the gradient's norm exceeds `skip_grad_norm`, the state stays as it is
    but for its step; `skipped` is 1 then, and `first_bad_leaf` the number of the first parameter whose gradient is not
    finite, or of the one with the largest.

    `metrics` holds sums: `loss` and `weight`, those of `train.metrics.batch_metrics`; and `grad_norm` (before
    clipping) and the loss's own statistics.

    >>> import optax, rdro_jax as rj
    >>> batch = rj.make_batch([[5, 6], [3]], [[7, 8], [4]], [True, False], slots=2, reference_logps=[-7.1, -3.4])
    >>> forward = lambda params, batch: params["logps"]  # of a model: rj.completion_logps(params, config, batch)
    >>> params = {"logps": batch.reference_logps}
    >>> loss, optimizer = rj.losses.RDRO(alpha=0.5), optax.sgd(0.1)
    >>> step = jax.jit(rj.make_train_step(forward, loss, optimizer))
    >>> state, metrics = step(rj.init_state(params, loss, optimizer), batch)
    >>> f"{metrics['loss'] / metrics['weight']:.3f} nats"  # 2 log 2, for the policy is the reference
    '1.386 nats'
    >>> print((state.params["logps"] - batch.reference_logps).round(3))  # nats: one up, the other down
    [[ 0.025 -0.025]]
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        whole = lambda params, part: params if assemble is None else assemble(params, state, part)  # noqa: E731
        gradients = _make_gradients(lambda params, part: forward(whole(params, part), part), loss, num_microbatches)
        (grads, sums), running, (logps, shared) = gradients(state.params, batch, state.running)
        grads = jax.tree.map(lambda g: g / sums["weight"], grads)
        squares = jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)])
        grad_norm = jnp.sqrt(jnp.sum(squares))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        made = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, running, state.frozen)
        # Decided on what every device has whole, so that all of them skip the same step.
        sound = jnp.isfinite(grad_norm) & jnp.isfinite(sums["loss"])
        if skip_grad_norm is not None:
            sound &= grad_norm <= skip_grad_norm
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), made, state._replace(step=made.step))
        metrics = sums | batch_metrics(loss_inputs(logps, batch), batch, loss) | dict(shared)
        bad = jnp.where(jnp.isfinite(squares), squares, jnp.inf)
        fate = {"skipped": 1.0 - sound, "first_bad_leaf": jnp.argmax(bad)}
        return kept, metrics | {"grad_norm": grad_norm} | fate

    return train_step


def _make_gradients(forward: Forward, loss: LossBase, num_microbatches: int):
    """(params, batch, running) -> ((gradients, sums), running, (log-probs of the batch, statistics)), all undivided."""
    own_statistics = num_microbatches == 1 or loss.statistics_scope == "microbatch"
    other_logps, statistics = _make_statistics(forward, loss)

    def objective(params, batch, shared, running):
        logps = forward(params, batch)
        if own_statistics:
            shared, running = statistics(batch, logps, other_logps(params, batch), running)
        values, weights = loss(loss_inputs(logps, batch)._replace(statistics=shared))
        total = jnp.sum(values * weights)
        return total, ({"loss": total, "weight": jnp.sum(weights)}, running, (logps, shared))

    def gradients(params, batch, shared, running):
        grads, (sums, running, told) = jax.grad(objective, has_aux=True)(params, batch, shared, running)
        # float32 sums whatever the parameters' type: bfloat16 would lose the later micro-batches.
        return jax.tree.map(lambda x: x.astype(jnp.float32), (grads, sums)), running, told

    def shared_statistics(params, batch, parts, running):
        """Of the global batch, by a forward pass of their own, which a loss without statistics is spared."""
        others = None if batch.mismatched is None else batch.mismatched.reference_logps
        if not jax.tree.leaves(jax.eval_shape(statistics, batch, batch.reference_logps, others, running)):
            return (), running
        score = lambda part: (forward(params, part), other_logps(params, part))  # noqa: E731
        logps, others = _join(jax.lax.map(score, parts))
        return statistics(batch, logps, others, running)

    def summed(params, batch, running):
        if num_microbatches == 1:
            return gradients(params, batch, (), running)
        parts = _split(batch, num_microbatches)
        shared, running = ((), running) if own_statistics else shared_statistics(params, batch, parts, running)

        def add(carry, part):
            totals, running = carry
            sums, running, told = gradients(params, part, shared, running)
            return (jax.tree.map(jnp.add, totals, sums), running), told

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, first, shared, running)[0]
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (sums, running), (logps, told) = jax.lax.scan(add, (nothing, running), parts)
        return sums, running, (_join(logps), jax.tree.map(lambda x: jnp.mean(x, axis=0), told))

    return summed


def _make_statistics(forward: Forward, loss: LossBase):
    """What couples examples: the log-probs of mismatched rows, and the loss' statistics; no gradient flows."""

    def other_logps(params, batch):
        if not loss.needs_mismatched:
            return None
        if batch.mismatched is None:
            raise ValueError(f"batch.mismatched: got None; wanted the rows of mismatched examples '{loss.name}' reads")
        return forward(jax.lax.stop_gradient(params), batch.mismatched)

    def statistics(batch, logps, others, running):
        mismatched = None if others is None else loss_inputs(others, batch.mismatched)
        return loss.statistics(loss_inputs(jax.lax.stop_gradient(logps), batch), mismatched, running)

    return other_logps, statistics


def loss_inputs(policy_logps: Float[Array, "rows slots"], batch: Batch) -> LossInputs:
    """Flatten packed rows to examples."""
    return LossInputs(
        policy_logps=policy_logps.reshape(-1),
        reference_logps=batch.reference_logps.reshape(-1),
        lengths=completion_lengths(batch).reshape(-1),
        desirable=batch.desirable.reshape(-1),
        weight=batch.weight.reshape(-1),
        prompt_alpha=None if batch.prompt_alpha is None else batch.prompt_alpha.reshape(-1),
    )


def _split(batch: Batch, parts: int) -> Batch:
    """Leading axis [rows] -> [parts, rows / parts], each part taking its rows evenly from every device's block."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _join(parts: Any) -> Any:
    """[parts, rows / parts, ...] -> [rows, ...]: the rows where `_split` found them."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
