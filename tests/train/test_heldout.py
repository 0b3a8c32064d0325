"""Held-out metrics against brute force."""

import math

import numpy as np
import pytest

from rdro_jax.losses import BCO, KTO, RDRO, SFT, APOZeroUnpaired, LossInputs
from rdro_jax.study.worlds import ALPHA, draw_worlds
from rdro_jax.train.bootstrap import draw_prompts, interval
from rdro_jax.train.heldout import auc, heldout_intervals, heldout_metrics, heldout_pictures


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


def weighted_auc(scores, liked, weight, prompts=None):
    """Over all pairs of both classes, one by one; those of one prompt only where prompts are told."""
    won = pairs = 0.0
    for i in np.flatnonzero(liked):
        for j in np.flatnonzero(~liked):
            if prompts is None or prompts[i] == prompts[j]:
                pairs += weight[i] * weight[j]
                won += weight[i] * weight[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / pairs if pairs else math.nan


def definitions(x, prompts, alpha):
    """Every figure of RDRO by its definition, in numpy; NaN where it has nothing to stand on."""
    mean = lambda values, w: (values * w).sum() / w.sum() if w.sum() else math.nan  # noqa: E731
    y, s = x.policy_logps.astype(np.float64), x.policy_logps.astype(np.float64) - x.reference_logps
    liked, w, n, r = x.desirable, x.weight.astype(np.float64), x.lengths, np.exp(s)

    def correlation(member):
        if not member.any() or np.ptp(s[member]) == 0:
            return math.nan
        covariance = np.cov(s[member], n[member], aweights=w[member])
        return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])

    plus, minus = w * liked, w * ~liked
    eta, over = np.minimum(alpha * r, 1), (r > 1 / alpha) * 1.0
    means = mean(r, plus), mean(r, minus)
    every = np.ones(len(s), bool)
    bins = [np.clip(np.floor(eta * 10), 0, 9) == number for number in range(10)]
    objective = mean(np.log1p(1 / r) + alpha * np.log1p(r), plus) + (1 - alpha) * mean(np.log1p(r), minus)
    wanted = {
        "loss": mean(np.log1p(r) + liked * np.log1p(1 / r) / alpha, w),
        "loss_floor": (1 + alpha) * np.log(1 + alpha) - alpha * np.log(alpha),
        "rewards/margins": mean(s, plus) - mean(s, minus),
        "rewards/auc": weighted_auc(s, liked, w),
        "rewards/auc_within_prompt": weighted_auc(s, liked, w, prompts),
        "length_correlation/all": correlation(every),
        "ratio/over_bound": mean(over, w),
        "ratio/normalisation": alpha * means[0] + (1 - alpha) * means[1],
        "ratio/effective_share": (w * r).sum() ** 2 / (w.sum() * (w * r**2).sum()),
        "ratio/preferred_rate": (plus * r).sum() / (w * r).sum(),
        "alpha_hat/value": math.nan if np.ptp(s) == 0 else (1 - means[1]) / (means[0] - means[1]),
        "calibration/brier": mean((eta - liked) ** 2, w),
        "calibration/ece": sum(
            abs(mean(eta[m], w[m]) - mean(liked[m], w[m])) * w[m].sum() / w.sum() for m in bins if m.any()
        ),
        "divergence/kl": mean(s, plus),
        "divergence/policy_kl": (w * r * s).sum() / (w * r).sum(),
        "divergence/reference_kl": -mean(s, w),
        "divergence/pearson": means[0] - (alpha * mean(r**2, plus) + (1 - alpha) * mean(r**2, minus)) / 2 - 0.5,
        "divergence/jensen_shannon": np.log(2) - objective / 2,
    }
    for name, member in (("chosen", liked), ("rejected", ~liked)):
        part = w * member
        wanted |= {
            f"counts/{name}": member.sum(),
            f"lengths/{name}": mean(n, part),
            f"logps/{name}": mean(y, part),
            f"nll/{name}": -(part * y).sum() / (part * n).sum() if member.any() else math.nan,
            f"rewards/{name}": mean(s, part),
            f"rewards/{name}_p5": np.quantile(s[member], 0.05) if member.any() else math.nan,
            f"rewards/{name}_p95": np.quantile(s[member], 0.95) if member.any() else math.nan,
            f"length_correlation/{name}": correlation(member),
            f"ratio/over_bound_{name}": mean(over, part),
        }
    return wanted


@pytest.mark.parametrize("weights", ["once", "weighted"])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "all desirable", "all undesirable"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_metrics_equal_their_definitions(kind, weights):
    x, prompts = held_out()
    # Whole numbers near the reference's, so that equal log-ratios are equal to the last bit.
    level = np.round(x.reference_logps)
    if kind in ("ties", "constant"):
        s = np.round(x.policy_logps - x.reference_logps) if kind == "ties" else 1
        x = x._replace(reference_logps=level, policy_logps=level + s)
    if kind.startswith("all"):
        x = x._replace(desirable=np.full(50, kind == "all desirable"))
    if weights == "weighted":
        x = x._replace(weight=np.random.default_rng(1).uniform(0.2, 3, 50).astype(np.float32))
    got, wanted = heldout_metrics(RDRO(alpha=0.39), x, prompts=prompts), definitions(x, prompts, 0.39)
    low, high = got.pop("alpha_hat/low"), got.pop("alpha_hat/high")
    if kind in ("random", "ties"):
        assert low < got["alpha_hat/value"] < high
    told = {name: math.nan if value is None else value for name, value in got.items()}
    assert told.keys() == wanted.keys()
    assert told == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True)


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


@pytest.mark.filterwarnings("ignore:invalid value")
def test_intervals_are_quantiles_over_resampled_prompts():
    """Every figure of a resample equals that of the rows of the drawn prompts, written out as often as drawn."""
    x, prompts = held_out()
    x = x._replace(weight=np.random.default_rng(1).uniform(0.2, 3, 50).astype(np.float32))
    got = heldout_intervals(RDRO(alpha=0.39), x, prompts=prompts)
    names = np.unique(prompts)
    times = np.concatenate(list(draw_prompts(len(names))))
    resamples = []
    for drawn in times:
        rows = np.concatenate(
            [np.tile(np.flatnonzero(prompts == name), n) for name, n in zip(names, drawn, strict=True)]
        )
        copies = np.concatenate(
            [np.repeat(np.arange(n) + 100 * i, (prompts == names[i]).sum()) for i, n in enumerate(drawn)]
        )
        resampled = x._replace(**{key: getattr(x, key)[rows] for key in x._fields[:5]})
        resamples.append(definitions(resampled, copies, 0.39))
    fixed = {"loss_floor", "counts/chosen", "counts/rejected"}
    wanted = {key: interval(np.array([one[key] for one in resamples])) for key in resamples[0].keys() - fixed}
    assert got.keys() == wanted.keys()
    for key, ends in wanted.items():
        assert got[key] == pytest.approx(ends, rel=1e-9, abs=1e-12), key
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
    scores, prompts = np.array([2.0, 1, 0, 3, 4, 4, 9], np.float32), np.array([1, 1, 2, 2, 3, 3, 3], np.uint64)
    weight = np.array([2, 2, 1, 1, 4, 4, 4], np.float32)
    x = LossInputs(scores, np.zeros(7, np.float32), np.ones(7, int), np.array([1, 0, 1, 0, 1, 0, 0], bool), weight)
    of = {"prompts": prompts, "paired": True}
    assert heldout_metrics(APOZeroUnpaired(), x, **of)["rewards/accuracies"] == pytest.approx(2 / 7)
    drawn = np.concatenate(list(draw_prompts(3)))
    wanted = interval(drawn @ [2, 0, 0] / (drawn @ [2, 1, 4]))
    assert heldout_intervals(APOZeroUnpaired(), x, **of)["rewards/accuracies"] == pytest.approx(wanted)
    alone = x._replace(desirable=np.ones(7, bool))
    assert heldout_metrics(APOZeroUnpaired(), alone, **of)["rewards/accuracies"] is None


def test_pictures_count_every_example_once():
    x, _ = held_out()
    pictures = heldout_pictures(RDRO(alpha=0.39), x)
    histogram = pictures["log_ratio"]
    assert (sum(histogram["chosen"]), sum(histogram["rejected"])) == (x.desirable.sum(), (~x.desirable).sum())
    assert np.nansum(np.array(pictures["reliability"]["weight"], float)) == 50
    assert heldout_pictures(SFT(), x) == {}
