"""RDRO against hand-computed float64 values, its bounds, and what its estimators converge to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.losses import RDRO, SFT, LossInputs, rdro

S = np.array([-2.0, -0.5, 0.0, 0.3, 1.7, 4.0])
LABELS = np.array([True, False, True, True, False, False])
ALPHA = 0.39


def mean_loss(log_ratio, labels=LABELS, **kwargs):
    return jnp.mean(rdro(log_ratio, jnp.zeros_like(log_ratio), jnp.asarray(labels), **{"alpha": ALPHA, **kwargs}))


def test_logistic_equals_the_paper_in_float64():
    # l_i = log(1 + e^s) + 1[+] log(1 + e^-s) / alpha; dl/ds = sigmoid(s) - 1[+] sigmoid(-s) / alpha
    values = np.log1p(np.exp(S)) + LABELS * np.log1p(np.exp(-S)) / ALPHA
    slopes = 1 / (1 + np.exp(-S)) - LABELS / (1 + np.exp(S)) / ALPHA
    policy, reference = jnp.asarray(S - 7.0, jnp.float32), jnp.full(6, -7.0)
    np.testing.assert_allclose(rdro(policy, reference, jnp.asarray(LABELS), alpha=ALPHA), values, rtol=2e-6)
    grad = jax.grad(lambda p: rdro(p, reference, jnp.asarray(LABELS), alpha=ALPHA).sum())(policy)
    np.testing.assert_allclose(grad, slopes, rtol=1e-5, atol=1e-6)
    # a hand-computed figure: s = 0.3, preferred: log(1 + e^0.3) + log(1 + e^-0.3)/0.39
    assert float(rdro(jnp.float32([0.3]), jnp.zeros(1), jnp.array([True]), alpha=0.39)[0]) == pytest.approx(
        0.854355244468527 + 0.554355244468527 / 0.39, rel=1e-6
    )


def test_coefficients_are_the_table_of_generators():
    # times the sampling rate and per class: alpha * dl/ds on +, is the coefficient divided by (1 + r) for logistic
    r = np.exp(S)
    coefficients = {
        "logistic": ((ALPHA * r - 1) / (1 + r), (1 - ALPHA) * r / (1 + r)),
        "kl": (ALPHA * r - 1, (1 - ALPHA) * r),
        "least_squares": (ALPHA * r**2 - r, (1 - ALPHA) * r**2),
    }
    below_knee = np.log(1 / ALPHA) + 0.5 > S
    for generator, (preferred, other) in coefficients.items():
        grad = jax.grad(
            lambda s, g=generator: rdro(s, jnp.zeros(6), jnp.asarray(LABELS), alpha=ALPHA, generator=g).sum()
        )(jnp.asarray(S, jnp.float32))
        wanted = np.where(LABELS, preferred / ALPHA, other / (1 - ALPHA))
        use = below_knee if generator != "logistic" else slice(None)
        np.testing.assert_allclose(grad[use], wanted[use], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("generator", ["logistic", "kl", "least_squares"])
@pytest.mark.parametrize("extreme", [0.0, 20.0, 89.0, 300.0, 800.0, 1e4])
def test_values_and_gradients_are_finite(generator, extreme):
    s = jnp.float32([extreme, -extreme, extreme, -extreme])
    labels = jnp.array([True, True, False, False])
    value, grad = jax.value_and_grad(lambda s: mean_loss(s, labels, generator=generator))(s)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
    if generator == "logistic":
        coefficients = 4 * np.asarray(grad) * np.array([ALPHA, ALPHA, 1 - ALPHA, 1 - ALPHA])
        assert (coefficients[:2] >= -1 - 1e-6).all()
        assert (coefficients[:2] <= ALPHA + 1e-6).all()
        assert ((coefficients[2:] >= -1e-6) & (coefficients[2:] <= 1 - ALPHA + 1e-6)).all()


def test_class_mean_is_two_log_two_at_the_reference():
    assert float(mean_loss(jnp.zeros(6), estimator="class_mean")) == pytest.approx(2 * np.log(2), abs=1e-6)
    # the per-example form reaches the same where the classes stand at their rate
    labels = np.arange(100) < 39
    assert float(mean_loss(jnp.zeros(100), labels)) == pytest.approx(2 * np.log(2), abs=1e-6)


def population_minimiser(p_plus, p_minus, estimator):
    """Policy that minimises the estimator's expectation over outcomes, by Newton's method on each log-ratio."""
    q = ALPHA * p_plus + (1 - ALPHA) * p_minus
    share = ALPHA * p_plus / q
    labels, zeros = jnp.array([True, False]), jnp.zeros(2)

    def expected(s, share):
        if estimator == "class_mean":  # expectation of the class means with both classes at their rate
            plus, minus = rdro(jnp.stack([s, s]), zeros, labels, alpha=ALPHA, estimator="batch_mean")
            return share / ALPHA * plus + (1 - share) / (1 - ALPHA) * minus
        plus, minus = rdro(jnp.stack([s, s]), zeros, labels, alpha=ALPHA, estimator=estimator)
        return share * plus + (1 - share) * minus

    slope = jax.vmap(jax.grad(expected))
    low, high = jnp.full(q.shape, -20.0), jnp.full(q.shape, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        rising = slope(middle, share) > 0
        low, high = jnp.where(rising, low, middle), jnp.where(rising, middle, high)
    return np.asarray(q * jnp.exp(middle))


def test_minimisers_of_the_estimators():
    rng = np.random.default_rng(0)
    p_plus, p_minus = (0.98 * rng.dirichlet(np.full(20, 0.7)) + 0.02 / 20 for _ in range(2))
    for estimator in ("per_example", "class_mean"):
        np.testing.assert_allclose(population_minimiser(p_plus, p_minus, estimator), p_plus, atol=1e-5)
    # batch_mean counts the class prior twice: alpha p+ / (alpha^2 p+ + (1 - alpha)^2 p-) times the reference
    q = ALPHA * p_plus + (1 - ALPHA) * p_minus
    twice = ALPHA * p_plus / (ALPHA**2 * p_plus + (1 - ALPHA) ** 2 * p_minus) * q
    np.testing.assert_allclose(population_minimiser(p_plus, p_minus, "batch_mean"), twice, atol=1e-5)
    assert np.abs(twice - p_plus).sum() / 2 > 0.03


def test_prompt_alpha_shifts_the_log_ratio():
    per_prompt = np.array([0.2, 0.3, 0.5, 0.7, 0.9, 0.1])
    shifted = jnp.asarray(S + np.log(per_prompt / ALPHA), jnp.float32)
    got = rdro(jnp.float32(S), jnp.zeros(6), jnp.asarray(LABELS), alpha=ALPHA, prompt_alpha=jnp.float32(per_prompt))
    np.testing.assert_allclose(got, rdro(shifted, jnp.zeros(6), jnp.asarray(LABELS), alpha=ALPHA), rtol=1e-5)


def inputs():
    return LossInputs(
        policy_logps=jnp.float32(S - 7),
        reference_logps=jnp.full(6, -7.0),
        lengths=jnp.array([3, 4, 5, 2, 7, 0]),
        desirable=jnp.asarray(LABELS),
        weight=jnp.float32([1, 1, 1, 2, 1, 0]),
    )


def test_configs_are_the_functions_applied():
    x = inputs()
    values, weights = RDRO(alpha=ALPHA)(x)
    np.testing.assert_array_equal(values, rdro(x.policy_logps, x.reference_logps, x.desirable, alpha=ALPHA))
    np.testing.assert_array_equal(weights, x.weight)
    values, weights = SFT()(x)
    np.testing.assert_allclose(jnp.sum(values * weights), -jnp.sum(x.policy_logps * x.weight), rtol=1e-6)
    np.testing.assert_array_equal(weights, x.weight * x.lengths)
    np.testing.assert_array_equal(SFT(on="desirable")(x).weights, x.weight * x.lengths * x.desirable)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.3, 1.5])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"loss\.alpha: got"):
        RDRO(alpha=alpha)
