"""The optimizer against a hand-computed AdamW, and the schedule's corners."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdro_jax.optim import OptimizerConfig, make_optimizer, make_schedule


@pytest.mark.parametrize("matrix", ["kernel", "embedding", "lora_A", "lora_B"])
def test_two_steps_of_adamw_by_hand(matrix):
    config = OptimizerConfig(learning_rate=0.1, lr_scheduler_type="constant", warmup_ratio=0, weight_decay=0.01)
    optimizer = make_optimizer(config, 10)
    params = {matrix: jnp.array([1.0, -2.0]), "scale": jnp.array([1.0])}
    grads = {matrix: jnp.array([0.3, 0.4]), "scale": jnp.array([1.2])}  # global norm 1.3: clipped to 1
    state = optimizer.init(params)
    p, m, v = np.array([1.0, -2.0, 1.0]), 0.0, 0.0
    decay = np.array([0.01, 0.01, 0.0])
    for t in (1, 2):
        updates, state = optimizer.update(grads, state, params)
        params = {name: params[name] + updates[name] for name in params}
        g = np.array([0.3, 0.4, 1.2]) / 1.3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.1 * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)
    np.testing.assert_allclose(np.concatenate([params[matrix], params["scale"]]), p, rtol=1e-5)


def test_moments_of_bfloat16_parameters_are_float32_but_for_what_mu_dtype_says():
    """The second moment goes on falling where bfloat16 would hold it still: 0.999 of 1 is 1 there."""
    assert jnp.bfloat16(1) * jnp.bfloat16(0.999) == 1
    optimizer = make_optimizer(OptimizerConfig(mu_dtype="bfloat16", max_grad_norm=0), 10)
    params = {"kernel": jnp.ones(3, jnp.bfloat16)}
    state = optimizer.init(params)
    for size in (1.0, 0.0, 0.0):
        _, state = optimizer.update({"kernel": jnp.full(3, size)}, state, params)
    mu, nu = (optax.tree_utils.tree_get(state, name)["kernel"] for name in ("mu", "nu"))
    assert (mu.dtype, nu.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(mu.astype("float32"), 0.1 * 0.9**2, rtol=2**-7)
    np.testing.assert_allclose(nu, 0.001 * 0.999**2, rtol=1e-6)


@pytest.mark.parametrize(("kind", "middle", "end"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1, 1)])
def test_schedules_rise_then_fall(kind, middle, end):
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, lr_scheduler_type=kind, warmup_ratio=0.1), 100)
    rates = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 11, rtol=1e-6)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * middle, abs=1e-6)
    assert rates[100] == pytest.approx(2.0 * end, abs=1e-6)
