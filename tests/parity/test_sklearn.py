"""Held-out figures against scikit-learn, on random rows and on ties, constants and a missing class."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from rdro_jax.evaluate.judges import RIDGE, fit_logistic, instruction_ease
from rdro_jax.losses import RDRO, LossInputs
from rdro_jax.train.heldout import heldout_metrics, heldout_pictures

pytestmark = pytest.mark.parity

ALPHA, COUNT = 0.39, 200


def rows(kind):
    """Log-ratios, labels and prompts."""
    random = np.random.default_rng(0)
    liked = random.random(COUNT) < 0.4
    s = (random.normal(size=COUNT) + np.where(liked, 0.6, -0.6)).astype(np.float32)
    if kind == "ties":
        s = np.round(s)
    if kind == "constant":
        s = np.full(COUNT, np.float32(-0.25))
    if kind == "one class":
        liked = np.ones(COUNT, bool)
    return s, liked, np.sort(random.integers(0, 25, COUNT)).astype(np.uint64)


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "one class"])
def test_held_out_figures(kind):
    s, liked, prompts = rows(kind)
    x = LossInputs(s, np.zeros(COUNT, np.float32), np.ones(COUNT, int), liked, np.ones(COUNT, np.float32))
    got, curve = heldout_metrics(RDRO(alpha=ALPHA), x, prompts=prompts), heldout_pictures(RDRO(alpha=ALPHA), x)
    s = s.astype(np.float64)
    forecast = np.minimum(ALPHA * np.exp(s), 1)
    bins = np.minimum((forecast * 10).astype(int), 9)
    observed, mean = calibration_curve(liked, forecast, n_bins=10, pos_label=True)
    share = np.bincount(bins, minlength=10) / COUNT
    wanted = {
        "calibration/brier": brier_score_loss(liked, forecast, pos_label=True, labels=[False, True]),
        "calibration/ece": (share[share > 0] * np.abs(observed - mean)).sum(),
        # The objective is the log-loss of sigmoid(s), of every row as undesirable and of desirable ones, 1/alpha each.
        "loss": log_loss(np.zeros(COUNT), 1 / (1 + np.exp(-s)), labels=[0, 1])
        + liked.mean() / ALPHA * log_loss(np.ones(liked.sum()), 1 / (1 + np.exp(-s[liked])), labels=[0, 1]),
    }
    if kind == "one class":
        assert (got["rewards/auc"], got["rewards/auc_within_prompt"]) == (None, None)
    else:
        wanted["rewards/auc"] = roc_auc_score(liked, s)
        members = [prompts == name for name in np.unique(prompts)]
        both = [m for m in members if 0 < liked[m].sum() < m.sum()]
        pairs = [liked[m].sum() * (~liked[m]).sum() for m in both]
        wanted["rewards/auc_within_prompt"] = np.average([roc_auc_score(liked[m], s[m]) for m in both], weights=pairs)
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    drawn = [
        (f, o)
        for f, o in zip(*(curve["reliability"][k] for k in ("forecast", "observed")), strict=True)
        if o is not None
    ]
    np.testing.assert_allclose(drawn, np.stack([mean, observed], axis=1), atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_weights_are_sample_weights(kind):
    s, liked, prompts = rows(kind)
    weight = np.random.default_rng(2).uniform(0.1, 4, COUNT).astype(np.float32)
    x = LossInputs(s, np.zeros(COUNT, np.float32), np.ones(COUNT, int), liked, weight)
    got = heldout_metrics(RDRO(alpha=ALPHA), x, prompts=prompts)
    forecast = np.minimum(ALPHA * np.exp(s.astype(np.float64)), 1)
    weight = weight.astype(np.float64)
    wanted = {
        "rewards/auc": roc_auc_score(liked, s, sample_weight=weight),
        "rewards/chosen": np.average(s[liked], weights=weight[liked]),
        "divergence/kl": np.average(s[liked], weights=weight[liked]),
        "calibration/brier": brier_score_loss(liked, forecast, sample_weight=weight),
        "ratio/over_bound": np.average(np.exp(s) > 1 / ALPHA, weights=weight),
    }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_regressions_of_the_win_rates():
    random = np.random.default_rng(1)
    design = np.column_stack([np.ones(300), random.normal(size=(300, 2))])
    outcome = random.random(300) < 1 / (1 + np.exp(-design @ [0.5, 1, -1]))
    weight = random.integers(0, 4, 300)
    ours = fit_logistic(design, outcome * 1.0, weight, np.full(3, RIDGE))
    exact = {"fit_intercept": False, "tol": 1e-10, "max_iter": 10_000}
    theirs = LogisticRegression(C=1 / RIDGE, **exact).fit(design, outcome, sample_weight=weight)
    np.testing.assert_allclose(ours, theirs.coef_[0], atol=1e-6)
    outcomes, skews = random.random((4, 50)) < 0.5, random.normal(size=(4, 50))
    who = np.repeat(np.eye(4), 50, axis=0)
    terms = np.hstack([who, who * skews.reshape(-1, 1)]) / np.sqrt(RIDGE)
    terms = np.hstack([terms, np.tile(np.eye(50), (4, 1))])
    joint = LogisticRegression(C=1.0, **exact).fit(terms, outcomes.ravel())
    np.testing.assert_allclose(instruction_ease(outcomes * 1.0, skews), joint.coef_[0][8:], atol=1e-6)
