"""Held-out metrics against brute force."""

import math

import numpy as np
import pytest

from rdro_jax.losses import RDRO, SFT
from rdro_jax.train.heldout import auc, heldout_metrics


def brute_auc(scores, desirable):
    pairs = [(p, n) for p in scores[desirable] for n in scores[~desirable]]
    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])


@pytest.mark.parametrize("seed", range(5))
def test_auc_counts_pairs_and_halves_ties(seed):
    rng = np.random.default_rng(seed)
    scores, desirable = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.3
    assert auc(scores, desirable) == pytest.approx(brute_auc(scores, desirable), abs=1e-12)


def test_auc_of_one_class_is_none_and_of_constants_a_half():
    assert auc(np.ones(4), np.ones(4, bool)) is None
    assert auc(np.ones(4), np.array([True, False, True, False])) == 0.5


def test_metrics_equal_their_definitions():
    rng = np.random.default_rng(0)
    policy, reference = rng.normal(-20, 3, 50).astype(np.float32), rng.normal(-20, 3, 50).astype(np.float32)
    lengths, desirable = rng.integers(1, 9, 50), rng.random(50) < 0.4
    s = policy.astype(np.float64) - reference
    got = heldout_metrics(RDRO(alpha=0.39), policy, reference, lengths, desirable)
    loss = np.log1p(np.exp(s)) + desirable * np.log1p(np.exp(-s)) / 0.39
    assert got["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert got["rewards/chosen"] == pytest.approx(s[desirable].mean())
    assert got["rewards/rejected"] == pytest.approx(s[~desirable].mean())
    assert got["rewards/auc"] == pytest.approx(brute_auc(s, desirable))
    assert got["ratio/over_bound"] == (np.exp(s) > 1 / 0.39).mean()
    assert got["counts/chosen"] == desirable.sum()
    sft = heldout_metrics(SFT(), policy, np.zeros(50), lengths, desirable)
    assert sft["loss"] == pytest.approx(-policy.sum() / lengths.sum(), rel=1e-5)
    assert not math.isnan(sft["loss"])
    assert not any(name.startswith(("rewards", "ratio")) for name in sft)
