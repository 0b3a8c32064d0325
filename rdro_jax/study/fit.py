"""The minimiser of a loss over tabular policies, in float64: no learning rate blurs what the loss wants."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from rdro_jax.study.worlds import Shares, softmax

ExampleLoss = Callable[..., Float[Array, "examples"]]
"""(policy_logps, reference_logps, desirable, *extras) -> one value per example: a loss with its constants applied."""
PairLoss = Callable[..., Float[Array, "pairs"]]
"""(chosen, rejected, reference_chosen, reference_rejected, *extras) -> one value per pair; all are log-probs."""
MAX_STEPS = 60
"""Newton steps. A convex loss needs about ten; one without a finite minimiser uses them all."""
FLAT = 1e-13
"""Gradient norm, in nats, at which the descent ends; the objectives are means."""
STEP_SIZES = np.append(0.5 ** np.arange(24), 0.0)
"""Tried at every step, the best one taken; 0 stands for staying."""


def expected_loss(
    loss: ExampleLoss,
    policy_logps: Float[Array, "outcomes"],
    reference_logps: Float[Array, "outcomes"],
    shares: Shares,
    *extras: Float[Array, ""],
) -> Float[Array, ""]:
    """Mean of a loss over a training set given as shares: every outcome stands once with each label."""
    outcomes = policy_logps.shape[-1]
    desirable = jnp.arange(2 * outcomes) < outcomes
    weights = jnp.concatenate([jnp.asarray(shares.preferred), jnp.asarray(shares.other)])
    reference = jnp.concatenate([reference_logps, reference_logps])
    # What nobody drew is evaluated at ratio 1: it weighs nothing, but beyond the pole of DDRO 0 times NaN would.
    policy = jnp.where(weights > 0, jnp.concatenate([policy_logps, policy_logps]), reference)
    return jnp.sum(weights * loss(policy, reference, desirable, *extras))


def fit_policy(
    loss: ExampleLoss,
    reference: Float64[np.ndarray, "worlds outcomes"],
    shares: Shares,
    *extras: Float64[np.ndarray, "worlds"],
) -> Float64[np.ndarray, "worlds outcomes"]:
    """The policy of every world that minimises the mean loss over its training set, found from the reference.

    `extras` are further arguments of the loss, one number a world.
    """

    def objective(logits, data):
        reference_logps, shares, *extras = data
        return expected_loss(loss, jax.nn.log_softmax(logits), reference_logps, shares, *extras)

    start = np.log(reference)
    return softmax(minimise(objective, start, (start, shares, *extras)))


def fit_pairs(
    loss: PairLoss,
    reference: Float64[np.ndarray, "worlds outcomes"],
    pairs: Float64[np.ndarray, "worlds chosen rejected"],
    *extras: Float64[np.ndarray, "worlds"],
) -> Float64[np.ndarray, "worlds outcomes"]:
    """The policy of every world that minimises the mean of a paired loss; `pairs` are the shares of all pairs."""
    outcomes = reference.shape[-1]
    chosen, rejected = np.divmod(np.arange(outcomes**2), outcomes)

    def objective(logits, data):
        reference_logps, pairs, *extras = data
        logps = jax.nn.log_softmax(logits)
        values = loss(logps[chosen], logps[rejected], reference_logps[chosen], reference_logps[rejected], *extras)
        return jnp.sum(pairs.reshape(-1) * values)

    start = np.log(reference)
    return softmax(minimise(objective, start, (start, pairs, *extras)))


def minimise(
    objective: Callable[[Float[Array, "parameters"], Any], Float[Array, ""]],
    start: Float64[np.ndarray, "worlds parameters"],
    data: Any,
) -> Float64[np.ndarray, "worlds parameters"]:
    """A minimiser of objective(parameters, data[world]) for every world, in float64.

    Newton's method with the absolute values of the curvatures, so that it descends where the objective is not convex,
    and the best of a row of step sizes. A loss without a finite minimiser comes as far as 60 steps lead.
    """
    gradient = jax.vmap(jax.grad(objective))
    step = jax.vmap(lambda parameters, data: _newton_step(objective, parameters, data))

    def unfinished(carry):
        steps, parameters = carry
        slopes = jnp.linalg.norm(gradient(parameters, data), axis=-1)
        return (steps < MAX_STEPS) & jnp.any(slopes > FLAT)

    @jax.jit
    def descend(start, data):
        forward = lambda carry: (carry[0] + 1, step(carry[1], data))  # noqa: E731
        return jax.lax.while_loop(unfinished, forward, (0, start))[1]

    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, data)
        return np.asarray(descend(jnp.asarray(start), data))


def _newton_step(objective, parameters, data):
    slope = jax.grad(objective)(parameters, data)
    curvatures, directions = jnp.linalg.eigh(jax.hessian(objective)(parameters, data))
    # Logits have one direction without curvature or slope: the floor keeps it at rest.
    floor = jnp.maximum(1e-10 * jnp.max(jnp.abs(curvatures)), 1e-300)
    move = -directions @ ((directions.T @ slope) / jnp.maximum(jnp.abs(curvatures), floor))
    candidates = parameters + STEP_SIZES[:, None] * jnp.nan_to_num(move)
    heights = jax.vmap(objective, (0, None))(candidates, data)
    # Beyond the pole of DDRO heights are NaN: not a way down.
    return candidates[jnp.argmin(jnp.where(jnp.isfinite(heights), heights, jnp.inf))]
