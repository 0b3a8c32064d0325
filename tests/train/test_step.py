"""One step: against a plain unpacked recomputation, over micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, make_batch

from rdro_jax.losses import RDRO, SFT, completion_lengths
from rdro_jax.models import abstract_params, init_params
from rdro_jax.optim import OptimizerConfig, make_optimizer
from rdro_jax.parallel import MeshConfig, make_mesh, rows_sharding
from rdro_jax.train.policy import completion_logps
from rdro_jax.train.state import init_state, offloaded, state_shardings
from rdro_jax.train.step import make_train_step

LENGTHS = [(3, 9), (2, 4), (5, 11), (4, 20), (2, 3), (6, 2), (1, 13), (9, 9), (3, 17), (2, 8), (8, 1), (4, 4), (2, 25)]
LABELS = [n in (0, 1, 2, 5, 9) for n in range(len(LENGTHS))]
LOSSES = [RDRO(alpha=0.39), SFT(), SFT(on="desirable")]
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, weight_decay=0.01), num_steps=10)
forward = functools.partial(lambda config, params, batch: completion_logps(params, config, batch), CONFIG)


@functools.cache
def params():
    return init_params(CONFIG, jax.random.key(0))


def ragged():
    """Eight rows, the last ones empty, micro-batches of one class among them."""
    return make_batch(LENGTHS, rows=8, labels=LABELS)


def step(loss, batch, num_microbatches=1):
    train_step = jax.jit(make_train_step(forward, loss, OPTIMIZER, num_microbatches=num_microbatches))
    return train_step(init_state(params(), loss, OPTIMIZER), batch)


@functools.cache
def ragged_step(loss, num_microbatches=1):
    """The state and the sums after one step on `ragged()`, which several tests look at."""
    return step(loss, ragged(), num_microbatches)


def assert_close(left, right, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * 10), left, right)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_one_example_per_row_gives_the_same_gradient_and_loss(loss):
    """The oracle: nothing packed, every loss written out by hand, one plain gradient of one plain mean."""
    alone = make_batch(LENGTHS, rows=len(LENGTHS), slots=1, labels=LABELS)
    liked, lengths = jnp.array(LABELS), jnp.array([completion for _, completion in LENGTHS])

    def plain(p):
        logps = forward(p, alone)[:, 0]
        s = logps - alone.reference_logps[:, 0]
        if isinstance(loss, RDRO):
            return jnp.mean(jnp.logaddexp(0, s) + jnp.where(liked, jnp.logaddexp(0, -s) / loss.alpha, 0))
        chosen = liked if loss.on == "desirable" else jnp.ones(len(LENGTHS))
        return -jnp.sum(logps * chosen) / jnp.sum(lengths * chosen)

    wanted, grads = jax.jit(jax.value_and_grad(plain))(params())
    state, sums = ragged_step(loss)
    np.testing.assert_allclose(sums["loss"] / sums["weight"], wanted, rtol=1e-5)
    np.testing.assert_allclose(sums["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    # the Adam moment after one clipped step is 0.1 of the gradient: the gradient itself
    clipped = jax.tree.map(lambda g: 0.1 * g / jnp.maximum(1.0, optax.tree.norm(grads)), grads)
    apart = jax.tree.map(jnp.subtract, optax.tree_utils.tree_get(state.opt_state, "mu"), clipped)
    assert optax.tree.norm(apart) < 1e-5 * optax.tree.norm(clipped)


@pytest.mark.parametrize(("loss", "num_microbatches"), [*zip(LOSSES, (2, 4, 8), strict=True), (LOSSES[0], 8)], ids=str)
def test_microbatches_change_nothing(loss, num_microbatches):
    whole_state, whole = ragged_step(loss)
    parts_state, parts = ragged_step(loss, num_microbatches)
    np.testing.assert_allclose(parts["loss"] / parts["weight"], whole["loss"] / whole["weight"], rtol=1e-6)
    # A log-prob of 100 nats is rounded to 8e-6, which is twice that much of a ratio's square.
    for rtol, of_ratios in ((2e-6, False), (2e-5, True)):
        names = [name for name in whole if name.startswith("ratio") == of_ratios]
        assert_close({name: parts[name] for name in names}, {name: whole[name] for name in names}, rtol)
    mu = lambda state: optax.tree_utils.tree_get(state.opt_state, "mu")  # noqa: E731
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), mu(parts_state), mu(whole_state))


def test_moments_in_host_memory_change_no_bit():
    loss, batch = RDRO(alpha=0.39), ragged()
    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])
    results = {}
    for offload in (False, True):
        shardings = state_shardings(abstract_params(CONFIG), loss, OPTIMIZER, mesh, offload=offload)
        train_step = make_train_step(forward, loss, OPTIMIZER)
        train_step = offloaded(train_step, shardings) if offload else train_step
        state = jax.jit(lambda p: init_state(p, loss, OPTIMIZER), out_shardings=shardings)(params())
        compiled = jax.jit(train_step, out_shardings=(shardings, None), donate_argnums=0)
        results[offload], _ = compiled(state, jax.device_put(batch, rows_sharding(mesh)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    moments = optax.tree_utils.tree_get(results[True].opt_state, "mu")
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(moments)} == {"pinned_host"}
    assert_close(results[True], results[False], 0)


def test_counts_and_margins_are_sums_over_the_whole_batch():
    batch = ragged()
    logps, lengths = np.asarray(forward(params(), batch)), np.asarray(completion_lengths(batch))
    present, desirable = np.asarray(batch.weight) > 0, np.asarray(batch.desirable)
    _, sums = ragged_step(RDRO(alpha=0.39), 8)
    s = logps - np.asarray(batch.reference_logps)
    assert sums["counts/chosen"] == (present & desirable).sum() == 5
    assert sums["counts/rejected"] == (present & ~desirable).sum() == 8
    assert sums["completion_tokens"] == lengths[present].sum() == sum(c for _, c in LENGTHS)
    assert sums["tokens"] == sum(p + c for p, c in LENGTHS)
    assert sums["places"] == batch.tokens.size
    np.testing.assert_allclose(sums["rewards/chosen"], s[present & desirable].sum(), rtol=1e-4)
    np.testing.assert_allclose(sums["rewards/rejected"], s[present & ~desirable].sum(), rtol=1e-4)
    assert sums["ratio/over_bound"] == (s[present] > -np.log(0.39)).sum()


def test_filler_may_hold_anything():
    batch = ragged()
    empty = np.asarray(batch.weight) == 0
    dirty = batch._replace(desirable=batch.desirable | empty)
    clean_state, clean = ragged_step(RDRO(alpha=0.39))
    dirty_state, other = step(RDRO(alpha=0.39), dirty)
    assert_close(other, clean, 0)
    assert_close(dirty_state, clean_state, 0)
