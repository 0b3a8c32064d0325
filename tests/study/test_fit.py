"""The minimiser against closed forms and against scipy on formulas written out again."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from rdro_jax.losses import dpo, rdro
from rdro_jax.study.consistency import expected_gap, sft_on_preferred
from rdro_jax.study.estimators import fit_ratio
from rdro_jax.study.fit import fit_pairs, fit_policy, minimise
from rdro_jax.study.worlds import ALPHA, Shares, World, draw_counts, draw_worlds, population

WORLDS = draw_worlds(np.random.default_rng(0), 3)
REFERENCE = WORLDS.mixture(ALPHA)


def test_likelihood_alone_gives_the_frequencies():
    training = draw_counts(np.random.default_rng(1), WORLDS, ALPHA, 20_000)
    frequencies = training.preferred / training.preferred.sum(-1, keepdims=True)
    np.testing.assert_allclose(fit_policy(sft_on_preferred, REFERENCE, training), frequencies, atol=1e-8)


@pytest.mark.parametrize("generator", ["logistic", "kl", "least_squares"])
def test_endless_data_give_the_truth(generator):
    loss = partial(rdro, alpha=ALPHA, generator=generator)
    np.testing.assert_allclose(fit_policy(loss, REFERENCE, population(WORLDS, ALPHA)), WORLDS.preferred, atol=1e-8)


def test_sampled_data_give_what_scipy_finds():
    training = draw_counts(np.random.default_rng(2), WORLDS, ALPHA, 500)
    found = fit_policy(partial(rdro, alpha=ALPHA), REFERENCE, training)

    def objective(logits, reference, plus, minus):
        policy = np.exp(logits) / np.exp(logits).sum()
        s = np.log(policy) - np.log(reference)
        height = np.sum((plus + minus) * np.logaddexp(0, s) + plus * np.logaddexp(0, -s) / ALPHA)
        by_ratio = (plus + minus) / (1 + np.exp(-s)) - plus / ALPHA / (1 + np.exp(s))
        return height, by_ratio - policy * by_ratio.sum()

    for policy, reference, plus, minus in zip(found, REFERENCE, *training, strict=True):
        best = minimize(objective, np.log(reference), (reference, plus, minus), jac=True, options={"gtol": 1e-9})
        np.testing.assert_allclose(policy, np.exp(best.x) / np.exp(best.x).sum(), atol=1e-6)


def test_batch_mean_has_the_prior_twice():
    """alpha p+ / (alpha^2 p+ + (1 - alpha)^2 p-), by setting the derivative of its population loss to 0."""
    plus, minus = WORLDS
    expected = ALPHA * plus / (ALPHA**2 * plus + (1 - ALPHA) ** 2 * minus)
    np.testing.assert_allclose(fit_ratio(population(WORLDS, ALPHA)), expected, rtol=1e-8)
    assert np.abs(expected - plus / REFERENCE).max() > 0.1


def test_dpo_finds_the_scores_of_a_bradley_terry_world():
    """Pairs drawn from u x u and labelled by scores h: the policy is u exp(h / beta), normalised."""
    random, beta = np.random.default_rng(3), 0.7
    drawn, scores = random.dirichlet(np.ones(5)), random.normal(size=5)
    wins = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
    pairs = 2 * np.outer(drawn, drawn) * wins
    expected = drawn * np.exp(scores / beta)
    found = fit_pairs(partial(dpo, beta=beta), drawn[None], (pairs / pairs.sum())[None])
    np.testing.assert_allclose(found[0], expected / expected.sum(), atol=1e-8)


def test_descends_where_the_objective_curves_down():
    """x^4 / 4 - x^2 / 2 starts on its hump; Newton's own step would climb to 0."""
    found = minimise(
        lambda x, data: x[0] ** 4 / 4 - data * x[0] ** 2 / 2, np.array([[0.1], [-0.3]]), np.array([1.0, 4.0])
    )
    np.testing.assert_allclose(found[:, 0], [1.0, -2.0], atol=1e-10)


def log_of_label(policy_logps, reference_logps, desirable):
    """-log r for preferred completions, -log(1 - r / 2) for others: NaN for these above r = 2."""
    other = jnp.where(desirable, 0.0, policy_logps - reference_logps)
    return jnp.where(desirable, reference_logps - policy_logps, -jnp.log(1 - jnp.exp(other) / 2))


def test_a_pole_at_what_nobody_drew_does_no_harm():
    """The third completion is never drawn as other: its ratio may pass 2. The oracle is a grid over all policies."""
    reference = np.array([[0.4, 0.4, 0.2]])
    training = Shares(np.array([[0.1, 0.1, 0.3]]), np.array([[0.2, 0.3, 0.0]]))
    found = fit_policy(log_of_label, reference, training)[0]
    third, first = np.meshgrid(np.linspace(0.001, 0.999, 999), np.linspace(0.001, 0.999, 999))
    policy = np.stack([(1 - third) * first, (1 - third) * (1 - first), third])
    r = policy / reference[0][:, None, None]
    with np.errstate(invalid="ignore"):
        heights = -np.einsum("n,nij->ij", training.preferred[0], np.log(r))
        heights -= np.einsum("n,nij->ij", training.other[0][:2], np.log(1 - r[:2] / 2))
    best = np.unravel_index(np.nanargmin(heights), heights.shape)
    np.testing.assert_allclose(found, policy[:, *best], atol=2e-3)
    assert found[2] / 0.2 > 2


def test_gap_of_two_completions_by_hand():
    """p+ = (.5, .5), p- = (.9, .1): eta = alpha p+ / q at each."""
    world = World(np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]]))
    eta = [0.39 * 0.5 / (0.39 * 0.5 + 0.61 * 0.9), 0.39 * 0.5 / (0.39 * 0.5 + 0.61 * 0.1)]
    expected = sum((0.5 * (1 - e)) ** 0.5 for e in eta) / (2 * 0.5**0.5)
    assert expected_gap(world) == pytest.approx(expected, rel=1e-12)
