"""Each loss against figures worked out by hand in float64, identities between losses, and population optima."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.losses import (
    BCO,
    CPO,
    DDRO,
    DPO,
    KTO,
    ORPO,
    RDRO,
    LossInputs,
    SimPO,
    apo_zero_unpaired,
    bco,
    cpo,
    ddro,
    dpo,
    kto,
    orpo,
    rdro,
    simpo,
    udm_weights,
)
from rdro_jax.losses.numerics import log1mexp

ALPHA = 0.39
S = np.array([-2.0, -0.5, 0.0, 0.3, 0.6, 4.0])
LIKED = np.array([True, False, True, True, False, False])
LOGPS = jnp.asarray(S - 7, jnp.float32), jnp.full(6, -7.0), jnp.asarray(LIKED)
# Two pairs: chosen and rejected of policy and reference, and their tokens.
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = (
    np.array(v) for v in ([-5.0, -9.0], [-6.0, -4.5], [-5.5, -8.0], [-5.8, -6.0])
)
LENGTHS_W, LENGTHS_L = np.array([4, 10]), np.array([5, 3])
PAIRS = tuple(jnp.asarray(v, jnp.float32) for v in (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED))
LENGTHS = jnp.asarray(LENGTHS_W), jnp.asarray(LENGTHS_L)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=5e-6, atol=1e-6)


def test_ddro_is_the_likelihood_of_the_labels():
    below = np.where(np.log(1 / ALPHA) > S, S, 0.0)
    likelihood = np.where(LIKED, -np.log(ALPHA * np.exp(S)), -np.log(1 - ALPHA * np.exp(below)))
    plain = np.asarray(ddro(*LOGPS, alpha=ALPHA, epsilon=0.0))
    close(plain[:5], likelihood[:5])
    # the paper writes its classes' terms for alpha = 1/2: log 2 - s and log 2 - log(2 - e^s)
    close(ddro(*LOGPS, epsilon=0.0)[:5], np.where(LIKED, np.log(2) - S, np.log(2) - np.log(2 - np.exp(below)))[:5])
    close(ddro(*LOGPS, alpha=ALPHA)[:5], likelihood[:5])
    # tangent at 1 - alpha r = 0.1, where the value is log 10 and the slope 9
    close(ddro(*LOGPS, alpha=ALPHA)[5], math.log(10) + 9 * (4.0 - math.log(0.9 / ALPHA)))


def test_ddro_above_the_pole():
    pole = math.log(1 / ALPHA)
    value_and_slope = jax.vmap(
        jax.value_and_grad(
            lambda s, epsilon: ddro(s[None], jnp.zeros(1), jnp.array([False]), alpha=ALPHA, epsilon=epsilon)[0]
        ),
        in_axes=(0, None),
    )
    value, slope = value_and_slope(jnp.float32([pole - 1e-3, pole + 1e-3, 30.0, 200.0]), 0.0)
    assert value[0] > 6
    assert slope[0] > 900
    assert np.isnan(value[1:]).all(), "the plain form has no value above the pole, and must say so"
    assert np.isnan(slope[1:]).all()
    knee = math.log(0.9 / ALPHA)
    value, slope = value_and_slope(jnp.float32([knee - 1e-4, knee + 1e-4]), 0.1)
    close(
        slope, [9.0 - 1e-4 * 90, 9.0]
    )  # the second derivative at the knee is e (1 - e) / e^2 = 90 to the left, 0 right
    close(value, math.log(10) + np.array([-9e-4, 9e-4]))


@pytest.mark.parametrize("kl", [0.7, -0.7])
def test_kto(kl):
    z0 = max(kl, 0.0)
    wanted = np.where(LIKED, 1.5 * (1 - sigmoid(0.3 * (S - z0))), 0.5 * (1 - sigmoid(0.3 * (z0 - S))))
    close(kto(*LOGPS, kl, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5), wanted)
    slope = jax.grad(lambda kl: kto(*LOGPS, kl).sum())(kl)
    assert float(slope) == 0.0


def test_apo_zero():
    close(apo_zero_unpaired(*LOGPS, beta=0.3), np.where(LIKED, 1 - sigmoid(0.3 * S), sigmoid(0.3 * S)))


def test_bco():
    wanted = -np.log(np.where(LIKED, sigmoid(0.3 * S - 0.2), sigmoid(0.2 - 0.3 * S)))
    close(bco(*LOGPS, 0.2, beta=0.3), wanted)
    weights = udm_weights(jnp.float32([0.0, 0.5, 0.75, 0.8, 0.9, 1.0]))
    close(weights, [0.5, 1.0, 3.0, 4.0, 9.0, 10.0])
    close(bco(*LOGPS, 0.2, beta=0.3, undesirable_weight=weights), wanted * np.where(LIKED, 1, weights))


def test_dpo_kinds():
    beta, eps = 0.2, 0.1
    c, d = CHOSEN - REF_CHOSEN, REJECTED - REF_REJECTED
    right, wrong = -np.log(sigmoid(beta * (c - d))), -np.log(sigmoid(beta * (d - c)))
    wanted = {
        "sigmoid": (1 - eps) * right + eps * wrong,
        "robust": ((1 - eps) * right - eps * wrong) / (1 - 2 * eps),
        "ipo": (c / LENGTHS_W - d / LENGTHS_L - 1 / (2 * beta)) ** 2,
        "hinge": np.maximum(0, 1 - beta * (c - d)),
        "nca_pair": -np.log(sigmoid(beta * c)) - 0.5 * np.log(sigmoid(-beta * c)) - 0.5 * np.log(sigmoid(-beta * d)),
        "sppo_hard": (c - 0.5 / beta) ** 2 + (d + 0.5 / beta) ** 2,
    }
    for kind, values in wanted.items():
        lengths = dict(zip(("chosen_lengths", "rejected_lengths"), LENGTHS, strict=True)) if kind == "ipo" else {}
        close(dpo(*PAIRS, beta=beta, kind=kind, label_smoothing=eps, **lengths), values)
    # Delta = 0.7 and -2.5: -log sigmoid(0.07), -log sigmoid(-0.25)
    close(dpo(*PAIRS), [0.658759550, 0.825940248])
    with pytest.raises(ValueError, match="lengths"):
        dpo(*PAIRS, kind="ipo")


def test_losses_without_a_reference():
    w, d = CHOSEN / LENGTHS_W, REJECTED / LENGTHS_L  # log-probs per token
    close(simpo(*PAIRS[:2], *LENGTHS, beta=2.5, gamma=1.2), -np.log(sigmoid(2.5 * (w - d) - 1.2)))
    close(cpo(*PAIRS[:2], beta=0.2), -np.log(sigmoid(0.2 * (CHOSEN - REJECTED))))
    odds = np.exp(w) / (1 - np.exp(w)) / (np.exp(d) / (1 - np.exp(d)))
    close(orpo(*PAIRS[:2], *LENGTHS, beta=0.3), -0.3 * np.log(sigmoid(np.log(odds))))


def flat(chosen, rejected):
    return jnp.asarray(np.stack([chosen, rejected], axis=1).reshape(-1))


def paired_inputs():
    return LossInputs(
        policy_logps=flat(CHOSEN, REJECTED).astype(jnp.float32),
        reference_logps=flat(REF_CHOSEN, REF_REJECTED).astype(jnp.float32),
        lengths=flat(LENGTHS_W, LENGTHS_L),
        desirable=jnp.array([True, False, True, False]),
        weight=jnp.float32([1, 1, 3, 3]),
    )


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (
            DPO(kind="ipo", beta=0.2),
            dpo(*PAIRS, beta=0.2, kind="ipo", chosen_lengths=LENGTHS[0], rejected_lengths=LENGTHS[1]),
        ),
        (SimPO(), simpo(*PAIRS[:2], *LENGTHS)),
        (CPO(sft_weight=0.0), cpo(*PAIRS[:2])),
        (ORPO(), orpo(*PAIRS[:2], *LENGTHS) - CHOSEN / LENGTHS_W),
        (DPO(sft_weight=0.5), dpo(*PAIRS) - 0.5 * CHOSEN / LENGTHS_W),
    ],
    ids=str,
)
def test_paired_configs_give_the_weighted_mean_over_pairs(config, values):
    got = config(paired_inputs())
    close(got.values, np.repeat(values, 2))
    close(jnp.sum(got.values * got.weights) / jnp.sum(got.weights), (values[0] + 3 * values[1]) / 4)
    assert jnp.sum(got.weights) == 4
    # a pair that lost a member is no pair
    halved = config(paired_inputs()._replace(weight=jnp.float32([1, 1, 3, 0])))
    np.testing.assert_array_equal(halved.weights, [1, 0, 0, 0])


def unpaired_inputs():
    policy, reference, desirable = LOGPS
    weight = jnp.float32([1, 1, 1, 2, 1, 0])
    return LossInputs(policy, reference, jnp.array([3, 4, 5, 2, 7, 1]), desirable, weight)


def test_kto_estimates_the_kl_from_the_mismatched_rows():
    x = unpaired_inputs()
    mismatched = x._replace(policy_logps=jnp.float32([-6, -7.5, -9, -6.5, -6, 100]))
    statistics, running = KTO().statistics(x, mismatched, ())
    # s = 1, -0.5, -2, 0.5 (twice), 1 and a filler
    close(statistics["kl"], (1 - 0.5 - 2 + 2 * 0.5 + 1) / 6)
    assert running == ()
    nothing, _ = KTO().statistics(x, mismatched._replace(weight=jnp.zeros(6)), ())
    assert nothing["kl"] == 0
    close(KTO()(x._replace(statistics={"kl": 0.4})).values, kto(*LOGPS, 0.4))
    assert KTO().needs_mismatched
    assert KTO(kl_scope="microbatch").statistics_scope == "microbatch"
    assert KTO().statistics_scope == RDRO().statistics_scope == "global"


def test_bco_shift_is_the_mean_reward_of_all_examples_so_far():
    loss, x = BCO(beta=0.3), unpaired_inputs()
    rng = np.random.default_rng(0)
    running, seen = loss.init_running(), []
    for size in (5, 0, 3):
        policy = rng.normal(size=6)
        # examples are counted, whatever their weight
        batch = x._replace(policy_logps=jnp.float32(policy), weight=jnp.float32(2 * (np.arange(6) < size)))
        statistics, running = loss.statistics(batch, None, running)
        seen += list(0.3 * (policy[:size] + 7))
        close(statistics["delta"], np.mean(seen))
        close(running["delta"], np.mean(seen))
        assert running["examples"] == len(seen)
    close(loss(x._replace(statistics=statistics)).values, bco(*LOGPS, np.mean(seen), beta=0.3))


def test_class_mean_counts_the_classes_of_the_global_batch():
    x, loss = unpaired_inputs(), RDRO(alpha=ALPHA, estimator="class_mean")
    statistics, _ = loss.statistics(x, None, ())
    close(statistics["desirable_share"], 4 / 6)
    values, weights = loss(x._replace(statistics=statistics))
    below, above = np.log1p(np.exp(-S)), np.log1p(np.exp(S))
    w = np.asarray(x.weight)
    e_plus = lambda v: np.average(v, weights=w * LIKED)  # noqa: E731
    e_minus = np.average(above, weights=w * ~LIKED)
    close(jnp.sum(values * weights) / jnp.sum(weights), e_plus(below) + ALPHA * e_plus(above) + (1 - ALPHA) * e_minus)


def test_class_mean_of_a_batch_that_lacks_a_class_leaves_filler_finite():
    x = unpaired_inputs()._replace(weight=jnp.float32(LIKED))
    loss = RDRO(alpha=ALPHA, estimator="class_mean")
    values, weights = loss(x._replace(statistics=loss.statistics(x, None, ())[0]))
    assert np.isfinite(values).all()
    close(jnp.sum(values * weights) / 3, np.mean((np.log1p(np.exp(-S)) + ALPHA * np.log1p(np.exp(S)))[LIKED]))


def test_log1mexp_keeps_its_digits_at_both_ends():
    x = np.array([1e-30, 1e-9, 1e-3, 0.6, 0.7, 5.0, 40.0, 1e4])
    wanted = np.where(x < 1, np.log(-np.expm1(-x)), np.log1p(-np.exp(-np.maximum(x, 0.5))))
    value, slope = jax.vmap(jax.value_and_grad(lambda x: log1mexp(x[None])[0]))(jnp.float32(x))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(slope, np.exp(-x) / -np.expm1(-x), rtol=1e-6, atol=1e-30)


def test_the_sft_term_of_unpaired_losses_is_on_preferred_examples():
    x = unpaired_inputs()
    plain, more = RDRO(alpha=ALPHA)(x), RDRO(alpha=ALPHA, sft_weight=0.3)(x)
    close(more.values - plain.values, np.where(LIKED, -0.3 * np.asarray(x.policy_logps) / np.asarray(x.lengths), 0))


def test_rdro_at_one_half_is_nca_pair():
    zeros = jnp.zeros(6)
    with jax.enable_x64(True):
        chosen, rejected = jnp.asarray(S), jnp.asarray(S[::-1].copy())
        nca = dpo(chosen, rejected, zeros, zeros, beta=1.0, kind="nca_pair")
        half = lambda s, label: rdro(s, zeros, jnp.full(6, label), alpha=0.5)  # noqa: E731
        np.testing.assert_allclose(nca, (half(chosen, True) + half(rejected, False)) / 2, rtol=1e-12)


def test_rdro_tends_to_dil_as_alpha_vanishes():
    with jax.enable_x64(True):
        zeros, tiny = jnp.zeros(6), 1e-9
        got = rdro(jnp.asarray(S), zeros, jnp.asarray(LIKED), alpha=tiny, estimator="class_mean", desirable_share=0.5)
        np.testing.assert_allclose(got, 2 * np.log1p(np.exp(np.where(LIKED, -S, S))), rtol=1e-6)


def minimiser(expected, low=-12.0, high=12.0):
    """Root of the slope of a function of one log-ratio per outcome, by bisection in float64."""
    slope = jax.jit(jax.grad(lambda s: jnp.sum(expected(s))))
    low, high = jnp.full(20, low), jnp.full(20, high)
    for _ in range(50):
        middle = (low + high) / 2
        rising = slope(middle) > 0
        low, high = jnp.where(rising, low, middle), jnp.where(rising, middle, high)
    return np.asarray(middle)


def world(seed=0, alpha=ALPHA):
    """p+, the reference q, and P(+ | y) of 20 outcomes."""
    rng = np.random.default_rng(seed)
    p_plus, p_minus = (0.98 * rng.dirichlet(np.full(20, 0.7)) + 0.02 / 20 for _ in range(2))
    q = alpha * p_plus + (1 - alpha) * p_minus
    return p_plus, q, alpha * p_plus / q


def expectation(loss, share, **kwargs):
    """s -> expected value of each outcome whose labels are positive with probability `share`."""

    def expected(s):
        plus, minus = (loss(s, jnp.zeros(20), jnp.full(20, label), **kwargs) for label in (True, False))
        return share * plus + (1 - share) * minus

    return expected


def sampled_at(rate, share, alpha=ALPHA):
    """P(+ | y) and the density relative to q where preferred examples are drawn at `rate` instead of alpha."""
    plus, minus = share * rate / alpha, (1 - share) * (1 - rate) / (1 - alpha)
    return plus / (plus + minus)


def own_alpha(share, **kwargs):
    return expectation(rdro, share, prompt_alpha=jnp.full(20, ALPHA), alpha=0.95, **kwargs)


@pytest.mark.parametrize(
    "case",
    [
        lambda share: expectation(rdro, share, alpha=ALPHA, generator="power", exponent=0.5),
        lambda share: expectation(rdro, share, alpha=ALPHA, generator="power", exponent=2.0),
        lambda share: expectation(rdro, sampled_at(0.6, share), alpha=ALPHA, sampling_alpha=0.6),
        lambda share: expectation(rdro, 0.2 + 0.6 * share, alpha=0.2 + 0.6 * ALPHA, label_noise=0.2),
        lambda share: own_alpha(share),
        lambda share: own_alpha(share, prompt_alpha_form="weight"),
        lambda share: own_alpha(share, prompt_alpha_form="weight", generator="least_squares"),
        lambda share: own_alpha(share, generator="least_squares"),
    ],
    ids=["power", "power2", "resampled", "noisy", "offset", "weight", "weight_ls", "offset_ls"],
)
def test_the_optimum_is_the_preferred_distribution(case):
    p_plus, q, share = world()
    with jax.enable_x64(True):
        learnt = q * np.exp(minimiser(case(jnp.asarray(share))))
    np.testing.assert_allclose(learnt, p_plus, rtol=1e-6)


def test_the_optimum_of_ddro_where_the_labels_are_not_sure():
    """Its tangent starts at alpha r = 1 - epsilon: an outcome surer than that has no finite optimum of its own."""
    p_plus, q, share = world()
    sure = share > 0.9
    assert 0 < sure.sum() < 10
    with jax.enable_x64(True):
        eta = jnp.asarray(share)
        for expected in (
            expectation(ddro, eta, alpha=ALPHA),
            expectation(ddro, sampled_at(0.6, eta), alpha=ALPHA, sampling_alpha=0.6),
        ):
            log_ratio = minimiser(expected)
            np.testing.assert_allclose((q * np.exp(log_ratio))[~sure], p_plus[~sure], rtol=1e-6)
            assert (log_ratio[sure] > 11).all()


def test_without_correction_each_of_these_misses():
    p_plus, q, share = world()
    with jax.enable_x64(True):
        for expected in (
            expectation(rdro, sampled_at(0.6, jnp.asarray(share)), alpha=ALPHA),
            expectation(rdro, 0.2 + 0.6 * jnp.asarray(share), alpha=0.2 + 0.6 * ALPHA),
            expectation(rdro, jnp.asarray(share), alpha=0.95),
        ):
            learnt = q * np.exp(minimiser(expected))
            assert np.abs(learnt - p_plus).sum() / 2 > 0.03


@pytest.mark.parametrize(
    "loss", [RDRO(), DDRO(alpha="data"), DDRO(), RDRO(alpha=0.3), RDRO(alpha=0.3, sampling_alpha=0.5)]
)
def test_what_is_left_to_the_data_is_filled_in(loss):
    resolved = loss.resolve(0.39)
    assert resolved.alpha == (0.39 if loss.alpha == "data" else loss.alpha)
    assert resolved.sampling_alpha == (0.39 if loss.sampling_alpha is None else 0.5)
    assert resolved.log_bound == pytest.approx(math.log(1 / resolved.alpha))
    assert resolved.resolve(0.39) == resolved


def test_bounds():
    assert RDRO().log_bound is None
    assert KTO().log_bound is None
    # labelled 0.39 with a fifth of them wrong: (0.39 - 0.2) / 0.6 are right
    assert RDRO(label_noise=0.2).resolve(0.39).log_bound == pytest.approx(math.log(0.6 / 0.19))
