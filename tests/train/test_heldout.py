"""Held-out metrics against brute force."""

import math

import numpy as np
import pytest

from rdro_jax.losses import BCO, KTO, RDRO, SFT, LossInputs
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


def held_out(count=50, seed=0):
    rng = np.random.default_rng(seed)
    desirable, prompts = rng.random(count) < 0.4, rng.integers(0, 12, count).astype(np.uint64)
    reference = rng.normal(-20, 3, count).astype(np.float32)
    policy = reference + (rng.normal(0, 1, count) + np.where(desirable, 0.8, -0.4)).astype(np.float32)
    return LossInputs(policy, reference, rng.integers(1, 9, count), desirable, np.ones(count, np.float32)), prompts


def test_metrics_equal_their_definitions():
    x, prompts = held_out()
    liked = x.desirable
    s = x.policy_logps.astype(np.float64) - x.reference_logps
    r, alpha = np.exp(s), 0.39
    got = heldout_metrics(RDRO(alpha=alpha), x, prompts=prompts)
    loss = np.log1p(r) + liked * np.log1p(1 / r) / alpha
    in_prompt = [
        (s[i] > s[j]) + 0.5 * (s[i] == s[j])
        for i in np.flatnonzero(liked)
        for j in np.flatnonzero(~liked)
        if prompts[i] == prompts[j]
    ]
    eta = np.minimum(alpha * r, 1)
    wanted = {
        "loss": loss.mean(),
        "loss_floor": 1.39 * np.log(1.39) - 0.39 * np.log(0.39),
        "counts/chosen": liked.sum(),
        "lengths/rejected": x.lengths[~liked].mean(),
        "logps/chosen": x.policy_logps[liked].mean(dtype=np.float64),
        "rewards/chosen": s[liked].mean(),
        "rewards/rejected": s[~liked].mean(),
        "rewards/chosen_p5": np.quantile(s[liked], 0.05),
        "rewards/rejected_p95": np.quantile(s[~liked], 0.95),
        "rewards/auc": brute_auc(s, liked),
        "rewards/auc_within_prompt": np.mean(in_prompt),
        "ratio/over_bound": (r > 1 / alpha).mean(),
        "ratio/normalisation": alpha * r[liked].mean() + (1 - alpha) * r[~liked].mean(),
        "ratio/effective_share": r.sum() ** 2 / (len(r) * (r**2).sum()),
        "ratio/preferred_rate": r[liked].sum() / r.sum(),
        "alpha_hat/value": (1 - r[~liked].mean()) / (r[liked].mean() - r[~liked].mean()),
        "calibration/brier": ((eta - liked) ** 2).mean(),
        "divergence/kl": s[liked].mean(),
    }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert got["alpha_hat/low"] < got["alpha_hat/value"] < got["alpha_hat/high"]


def test_a_loss_without_a_reference_has_no_ratios():
    x, _ = held_out()
    got = heldout_metrics(SFT(), x)
    assert got["loss"] == pytest.approx(-x.policy_logps.sum(dtype=np.float64) / x.lengths.sum(), rel=1e-9)
    assert not any(name.startswith(("rewards", "ratio", "alpha", "calibration", "divergence")) for name in got)


def test_losses_that_couple_examples_take_their_statistics_from_the_held_out_rows():
    x, _ = held_out()
    others, _ = held_out(seed=1)
    s = others.policy_logps.astype(np.float64) - others.reference_logps
    assert heldout_metrics(KTO(), x, mismatched=others)["kl"] == pytest.approx(s.mean())
    s = x.policy_logps.astype(np.float64) - x.reference_logps
    running = {"delta": np.float32(0.2), "examples": np.float32(150)}
    got = heldout_metrics(BCO(beta=0.5), x, running=running)
    assert got["delta"] == pytest.approx((0.2 * 150 + 0.5 * s.sum()) / 200)


def test_one_class_and_infinite_ratios_give_none_not_nan():
    x, prompts = held_out()
    alone = x._replace(desirable=np.ones(50, bool), policy_logps=x.reference_logps + np.float32(1000))
    got = heldout_metrics(RDRO(alpha=0.39), alone, prompts=prompts)
    assert got["rewards/auc"] is None
    assert got["rewards/rejected"] is None
    assert got["ratio/normalisation"] is None
    assert all(value is None or math.isfinite(value) for value in got.values())
