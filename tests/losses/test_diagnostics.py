"""Diagnostics against plain numpy on worlds whose truth is known, filler in every batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.losses import diagnostics as dx
from rdro_jax.losses import rdro

ALPHA = 0.39


def world(seed=0, count=20_000):
    """Samples of the mixture, their labels, the log of the true relative ratio, and the distributions."""
    rng = np.random.default_rng(seed)
    p_plus, p_minus = (0.98 * rng.dirichlet(np.full(20, 0.7)) + 0.02 / 20 for _ in range(2))
    q = ALPHA * p_plus + (1 - ALPHA) * p_minus
    y = rng.choice(20, count, p=q)
    desirable = rng.random(count) < ALPHA * p_plus[y] / q[y]
    return p_plus, q, np.log(p_plus / q), y, desirable


def with_filler(log_ratio, desirable):
    """The arrays with examples of weight 0 among them that hold anything."""
    s = np.concatenate([log_ratio, [80.0, -300.0, np.inf]])
    z = np.concatenate([desirable, [True, False, True]])
    weight = np.concatenate([np.ones(len(log_ratio)), np.zeros(3)])
    return jnp.asarray(s, jnp.float32), jnp.asarray(z), jnp.asarray(weight, jnp.float32)


@pytest.fixture(scope="module")
def held_out():
    _, _, truth, y, desirable = world()
    return truth[y], desirable, with_filler(truth[y], desirable)


def test_figures_of_each_class(held_out):
    s, z, data = held_out
    means = dx.class_means(*data)
    quantiles = dx.class_quantiles(*data)
    for got, curve, member in zip(means, quantiles, (z, ~z), strict=True):
        np.testing.assert_allclose(got, s[member].mean(), rtol=1e-4)
        np.testing.assert_allclose(curve, np.quantile(s[member], [0.05, 0.95]), rtol=1e-5)
    np.testing.assert_allclose(dx.kullback_leibler(*data), s[z].mean(), rtol=1e-4)
    assert np.isnan(dx.class_means(data[0], jnp.ones_like(data[1]), data[2]).other)
    weights = jnp.float32([1, 2, 0, 3])
    means = dx.class_means(jnp.float32([1, 2, 9, 4]), jnp.array([True, True, True, False]), weights)
    np.testing.assert_allclose(means, [5 / 3, 4])
    medians = dx.class_quantiles(
        jnp.float32([1, 2, 9, 4]), jnp.array([True, True, True, False]), weights, probabilities=(0.5,)
    )
    np.testing.assert_allclose(medians, [[1.5], [4]])


def test_the_true_ratio_reads_as_such(held_out):
    s, z, data = held_out
    assert float(dx.over_bound_share(data[0], data[2], alpha=ALPHA)) == 0
    np.testing.assert_allclose(dx.over_bound_share(data[0], data[2], alpha=0.9), np.mean(s > -np.log(0.9)), rtol=1e-5)
    np.testing.assert_allclose(dx.normalisation(*data, alpha=ALPHA), 1, atol=0.02)
    r = np.exp(s)
    by_hand = ALPHA * r[z].mean() + (1 - ALPHA) * r[~z].mean()
    np.testing.assert_allclose(dx.normalisation(*data, alpha=ALPHA), by_hand, rtol=1e-5)
    np.testing.assert_allclose(dx.effective_share(data[0], data[2]), r.sum() ** 2 / (len(r) * (r**2).sum()), rtol=1e-4)
    assert float(dx.effective_share(data[0], data[2])) > ALPHA
    # samples of q, reweighted by p+ / q, are samples of p+, of which a known share is labelled preferred
    p_plus, q, *_ = world()
    wanted = (p_plus * ALPHA * p_plus / q).sum()
    np.testing.assert_allclose(dx.off_policy_preferred_rate(*data), wanted, atol=0.02)
    np.testing.assert_allclose(dx.off_policy_preferred_rate(*data), (r * z).sum() / r.sum(), rtol=1e-4)


def test_ratios_beyond_float32_do_not_overflow():
    s, weight = jnp.float32([500, 500, 499, -500]), jnp.ones(4)
    r = np.array([1, 1, np.exp(-1), 0])
    np.testing.assert_allclose(dx.effective_share(s, weight), r.sum() ** 2 / (4 * (r**2).sum()), rtol=1e-6)
    rate = dx.off_policy_preferred_rate(s, jnp.array([True, False, False, False]), weight)
    np.testing.assert_allclose(rate, 1 / r.sum(), rtol=1e-6)
    assert float(dx.posterior(s, alpha=ALPHA)[0]) == 1


def test_alpha_hat_finds_alpha_from_any_policy_that_tells_the_classes_apart():
    """The reference is the mixture, so every policy's ratio has mean 1 under it, a poor policy's too."""
    estimates = []
    for seed in range(20):
        _, q, truth, y, desirable = world(seed)
        policy = q * np.exp(0.5 * truth)
        log_ratio = np.log(policy / policy.sum() / q)[y]
        estimates.append(float(dx.alpha_hat(*with_filler(log_ratio, desirable))))
    assert abs(np.mean(estimates) - ALPHA) < 0.01


def test_posterior_and_its_calibration(held_out):
    s, z, data = held_out
    eta = np.minimum(ALPHA * np.exp(s), 1)
    np.testing.assert_allclose(dx.brier(*data, alpha=ALPHA), np.mean((eta - z) ** 2), rtol=1e-4)
    curve = dx.reliability(*data, alpha=ALPHA)
    edges = np.clip(np.floor(eta * 10), 0, 9)
    for number in range(10):
        member = edges == number
        assert float(curve.weight[number]) == member.sum()
        if member.any():
            np.testing.assert_allclose(curve.forecast[number], eta[member].mean(), rtol=1e-3)
            np.testing.assert_allclose(curve.observed[number], z[member].mean(), rtol=1e-3)
    assert float(dx.calibration_error(curve)) < 0.02
    overconfident = (2 * data[0], *data[1:])
    assert float(dx.calibration_error(dx.reliability(*overconfident, alpha=ALPHA))) > 0.05


def test_brier_is_the_least_squares_objective():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        z = jnp.asarray(np.arange(1000) < 390)
        s = jnp.asarray(rng.uniform(-4, np.log(1 / ALPHA), 1000))
        objective = rdro(s, jnp.zeros(1000), z, alpha=ALPHA, generator="least_squares").mean()
        np.testing.assert_allclose(
            dx.brier(s, z, jnp.ones(1000), alpha=ALPHA), 2 * ALPHA**2 * objective + ALPHA, rtol=1e-12
        )


def test_divergences(held_out):
    *_, data = held_out
    p_plus, q, *_ = world()
    np.testing.assert_allclose(dx.kullback_leibler(*data), (p_plus * np.log(p_plus / q)).sum(), atol=0.02)
    np.testing.assert_allclose(dx.pearson(*data, alpha=ALPHA), (q * (p_plus / q - 1) ** 2).sum() / 2, atol=0.02)
    middle = (p_plus + q) / 2
    js = (p_plus * np.log(p_plus / middle)).sum() / 2 + (q * np.log(q / middle)).sum() / 2
    np.testing.assert_allclose(dx.jensen_shannon(*data, alpha=ALPHA), js, atol=0.005)


@pytest.mark.parametrize(("alpha", "floor"), [(0.39, 0.825), (0.5, 0.955)])
def test_floor_is_the_loss_of_the_bound_on_classes_that_do_not_overlap(alpha, floor):
    s = jnp.float32([-np.log(alpha), -200.0])
    objective = rdro(s, jnp.zeros(2), jnp.array([True, False]), alpha=alpha, estimator="batch_mean").sum()
    assert dx.loss_floor(alpha) == pytest.approx(float(objective), rel=1e-5)
    assert dx.loss_floor(alpha) == pytest.approx(floor, abs=1e-3)


def test_loss_floor_is_the_infimum_over_ratios() -> None:
    """With disjoint classes the objective parts into sp(-s) + alpha sp(s), minimised on a grid, and 0."""
    s = np.linspace(-10, 10, 200_001)
    for alpha in (0.39, 0.5):
        grid = np.min(np.logaddexp(0, -s) + alpha * np.logaddexp(0, s))
        assert dx.loss_floor(alpha) == pytest.approx(grid, abs=1e-8)
    assert dx.loss_floor(0.5) == pytest.approx(0.955, abs=5e-4)


def test_what_differs_by_rounding_only_is_no_figure():
    """Of a constant, sums in another order differ by a bit: no estimate may be made of that."""
    z = np.random.default_rng(0).random(1000) < 0.4
    for constant in (0.1, 1.0, -3.3):
        data = with_filler(np.full(1000, constant), z)
        assert np.isnan(dx.alpha_hat(*data))
        assert np.isnan(dx.correlation(data[0], jnp.arange(1003.0), data[2]))
        assert np.isnan(dx.correlation(jnp.arange(1003.0), data[0], data[2]))
