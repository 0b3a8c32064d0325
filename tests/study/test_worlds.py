"""Drawing worlds and training sets."""

import numpy as np
import pytest

from rdro_jax.study.worlds import ALPHA, World, draw_counts, draw_worlds, population, slope, softmax, total_variation


def test_worlds_are_distributions_with_a_floor():
    worlds = draw_worlds(np.random.default_rng(0), 50)
    for p in worlds:
        assert p.shape == (50, 20)
        np.testing.assert_allclose(p.sum(-1), 1)
        assert p.min() >= 0.001
    assert total_variation(*worlds).min() > 0.1


def test_training_sets_are_shares_of_whole_completions():
    worlds = draw_worlds(np.random.default_rng(0), 3)
    training = draw_counts(np.random.default_rng(1), worlds, ALPHA, np.array([10, 200, 100_000]))
    np.testing.assert_allclose(sum(training).sum(-1), 1)
    counts = np.array([[10], [200], [100_000]]) * training.preferred
    np.testing.assert_allclose(counts, counts.round(), atol=1e-8)
    exact = population(worlds, ALPHA)
    for drawn, expected in zip(training, exact, strict=True):
        # Five standard errors of a share at 100,000.
        assert np.abs(drawn[2] - expected[2]).max() < 5 * (0.25 / 100_000) ** 0.5


def test_repeat_goes_round_all_worlds():
    worlds = World(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.5, 0.5], [0.2, 0.8]]))
    assert worlds.repeat(2).other.tolist() == [[0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [0.2, 0.8]]
    assert worlds.mixture(0.25).tolist() == [[0.625, 0.375], pytest.approx([0.15, 0.85])]


def test_total_variation_by_hand():
    assert total_variation(np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.5, 0.3])) == pytest.approx(0.3)
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1


def test_slope_of_a_power_law():
    sizes = np.array([100, 1_000, 5_000])
    assert slope(sizes, 7 * sizes**-0.5) == pytest.approx(-0.5)


def test_softmax_of_large_logits():
    np.testing.assert_allclose(softmax(np.array([1e4, 1e4 + np.log(3)])), [0.25, 0.75])
