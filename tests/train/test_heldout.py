"""Held-out metrics against brute force."""

import math

import numpy as np
import pytest

from rdro_jax.losses import BCO, KTO, RDRO, SFT, LossInputs
from rdro_jax.study.worlds import ALPHA, draw_worlds
from rdro_jax.train.bootstrap import draw_prompts, interval, resampled_auc
from rdro_jax.train.heldout import auc, heldout_intervals, heldout_metrics, heldout_pictures, pair_accuracy


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


def brute_ece(forecast, observed):
    bins = np.clip(np.floor(forecast * 10), 0, 9)
    members = [bins == number for number in range(10)]
    return sum(abs(forecast[m].mean() - observed[m].mean()) * m.mean() for m in members if m.any())


def held_out(count=50, seed=0):
    rng = np.random.default_rng(seed)
    desirable, prompts = rng.random(count) < 0.4, rng.integers(0, 12, count).astype(np.uint64)
    reference = rng.normal(-20, 3, count).astype(np.float32)
    policy = reference + (rng.normal(0, 1, count) + np.where(desirable, 0.8, -0.4)).astype(np.float32)
    return LossInputs(policy, reference, rng.integers(1, 9, count), desirable, np.ones(count, np.float32)), prompts


@pytest.mark.parametrize("spread", [1, None, 0], ids=["random", "ties", "constant"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_metrics_equal_their_definitions(spread):
    x, prompts = held_out()
    s = x.policy_logps - x.reference_logps
    # Whole numbers near the reference's, so that equal log-ratios are equal to the last bit.
    level = np.round(x.reference_logps)
    x = (
        x
        if spread == 1
        else x._replace(reference_logps=level, policy_logps=level + np.round(s if spread is None else 1))
    )
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
        "divergence/policy_kl": (r * s).sum() / r.sum(),
        "divergence/reference_kl": -s.mean(),
        "ratio/over_bound_chosen": (r > 1 / alpha)[liked].mean(),
        "ratio/over_bound_rejected": (r > 1 / alpha)[~liked].mean(),
        "nll/chosen": -x.policy_logps[liked].sum(dtype=np.float64) / x.lengths[liked].sum(),
        "rewards/margins": s[liked].mean() - s[~liked].mean(),
        "length_correlation/all": np.corrcoef(s, x.lengths)[0, 1],
        "length_correlation/rejected": np.corrcoef(s[~liked], x.lengths[~liked])[0, 1],
        "calibration/ece": brute_ece(eta, liked),
    }
    told = {name: math.nan if got[name] is None else got[name] for name in wanted}
    if spread == 0:
        wanted["alpha_hat/value"] = math.nan  # 0/0, whatever rounding makes of it
        assert np.isnan(wanted["length_correlation/all"])
    else:
        assert got["alpha_hat/low"] < got["alpha_hat/value"] < got["alpha_hat/high"]
    assert told == pytest.approx(wanted, rel=1e-9, nan_ok=True)


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
    intervals = heldout_intervals(RDRO(alpha=0.39), alone, prompts=prompts)
    assert intervals["rewards/auc"] == (None, None)
    assert intervals["ratio/normalisation"] == (None, None)
    assert intervals["divergence/kl"] == pytest.approx((1000, 1000))
    constant = heldout_metrics(RDRO(alpha=0.39), x._replace(policy_logps=x.reference_logps), prompts=prompts)
    assert (constant["rewards/auc"], constant["ratio/normalisation"], constant["divergence/policy_kl"]) == (0.5, 1, 0)
    assert constant["length_correlation/all"] is None
    assert constant["alpha_hat/value"] is None


def test_intervals_are_quantiles_over_resampled_prompts():
    """Every figure of a resample equals that of the rows of the drawn prompts, written out as often as drawn."""
    x, prompts = held_out()
    got = heldout_intervals(RDRO(alpha=0.39), x, prompts=prompts)
    s, names = x.policy_logps.astype(np.float64) - x.reference_logps, np.unique(prompts)
    times = np.concatenate(list(draw_prompts(len(names))))
    normalisation, ranked, within = [], [], []
    for drawn in times:
        rows = np.concatenate(
            [np.tile(np.flatnonzero(prompts == name), n) for name, n in zip(names, drawn, strict=True)]
        )
        copies = np.concatenate(
            [np.repeat(np.arange(n) + 100 * i, (prompts == names[i]).sum()) for i, n in enumerate(drawn)]
        )
        r, liked = np.exp(s[rows]), x.desirable[rows]
        normalisation.append(0.39 * r[liked].mean() + 0.61 * r[~liked].mean())
        ranked.append(auc(s[rows], liked))
        within.append(auc_by_pairs(s[rows], liked, copies))
    assert got["ratio/normalisation"] == pytest.approx(interval(np.array(normalisation)), rel=1e-9)
    assert got["rewards/auc"] == pytest.approx(interval(np.array(ranked)), rel=1e-9)
    assert got["rewards/auc_within_prompt"] == pytest.approx(interval(np.array(within)), rel=1e-9)
    tied = np.round(s)
    np.testing.assert_allclose(resampled_auc(tied, x.desirable, np.ones((1, 50), int)), auc(tied, x.desirable))
    assert times.shape == (1000, len(names))
    assert (times.sum(1) == len(names)).all()


def test_rows_of_one_prompt_are_resampled_by_themselves():
    """Drawn by prompt there would be one resample only, and intervals of no width."""
    x, _ = held_out()
    of = lambda prompts: heldout_intervals(RDRO(alpha=0.39), x, prompts=prompts)  # noqa: E731
    alone, shared = of(None), of(np.zeros(50, np.uint64))
    assert shared["rewards/auc_within_prompt"] == shared["rewards/auc"]
    assert alone == {name: ends for name, ends in shared.items() if name != "rewards/auc_within_prompt"}
    assert all(low < high for name, (low, high) in alone.items() if not name.startswith("counts"))


def auc_by_pairs(s, liked, groups):
    won = (s[:, None] > s) + 0.5 * (s[:, None] == s)
    pairs = liked[:, None] & ~liked & (groups[:, None] == groups)
    return won[pairs].mean()


def test_known_truth_is_found():
    """At the optimum r = p+ / q: alpha is found, the check is 1, the AUC is Bayes', ESS at least alpha."""
    random = np.random.default_rng(3)
    (preferred,), (other,) = draw_worlds(random, 1)
    q = ALPHA * preferred + (1 - ALPHA) * other
    desirable = random.random(8000) < ALPHA
    y = np.where(desirable, random.choice(20, 8000, p=preferred), random.choice(20, 8000, p=other))
    x = LossInputs(np.log(preferred)[y], np.log(q)[y], np.ones(8000, int), desirable, np.ones(8000))
    got = heldout_metrics(RDRO(alpha=ALPHA), x)
    ratio = preferred / q
    bayes = (preferred[:, None] * other * ((ratio[:, None] > ratio) + 0.5 * (ratio[:, None] == ratio))).sum()
    assert got["alpha_hat/value"] == pytest.approx(ALPHA, abs=0.01)
    assert got["alpha_hat/low"] < ALPHA < got["alpha_hat/high"]
    assert got["ratio/normalisation"] == pytest.approx(1, abs=0.02)
    assert got["rewards/auc"] == pytest.approx(bayes, abs=0.01)
    assert got["ratio/effective_share"] >= ALPHA
    assert got["ratio/preferred_rate"] == pytest.approx((preferred * ALPHA * preferred / q).sum(), abs=0.01)
    assert got["divergence/kl"] == pytest.approx((preferred * np.log(ratio)).sum(), abs=0.02)
    assert got["divergence/policy_kl"] == pytest.approx((preferred * np.log(ratio)).sum(), abs=0.02)
    assert got["divergence/reference_kl"] == pytest.approx((-q * np.log(ratio)).sum(), abs=0.02)
    assert got["calibration/ece"] < 0.02
    assert got["ratio/over_bound"] == 0


def test_accuracy_is_over_pairs_of_neighbours():
    scores, prompts = np.array([2.0, 1, 0, 3, 4, 4, 9]), np.array([1, 1, 2, 2, 3, 3, 3], np.uint64)
    assert pair_accuracy(scores, np.array([1, 0, 1, 0, 1, 0, 0], bool), prompts) == pytest.approx(1 / 3)
    assert pair_accuracy(scores, np.ones(7, bool), prompts) is None


def test_pictures_count_every_example_once():
    x, _ = held_out()
    pictures = heldout_pictures(RDRO(alpha=0.39), x)
    histogram = pictures["log_ratio"]
    assert (sum(histogram["chosen"]), sum(histogram["rejected"])) == (x.desirable.sum(), (~x.desirable).sum())
    assert np.nansum(np.array(pictures["reliability"]["weight"], float)) == 50
    assert heldout_pictures(SFT(), x) == {}
