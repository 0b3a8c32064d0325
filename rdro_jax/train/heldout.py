"""What held-out rows say about a policy, given its log-ratios to the reference. float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt64
from scipy.stats import rankdata

from rdro_jax.losses import LossBase, LossInputs, diagnostics
from rdro_jax.train.metrics import CLASSES, QUANTILES


def heldout_metrics(
    loss: LossBase,
    x: LossInputs,
    *,
    mismatched: LossInputs | None = None,
    running: Any = None,
    prompts: UInt64[np.ndarray, "examples"] | None = None,
) -> dict[str, Any]:
    """Held-out loss, its statistics, and what the log-ratios say; None where a figure has nothing to stand on.

    By class: counts, mean completion length (tokens), mean log-prob (nats) and, of a loss with a reference, mean and
    5 % and 95 % quantiles of the log-ratio (nats) and the AUC, over all examples and over examples of one prompt.
    Of a ratio loss also the diagnostics of `rdro_jax.losses.diagnostics`, with its alpha.

    `prompts` are equal for examples of one prompt. `running` are the running statistics of training, which stay as
    they are.
    """
    # float64, on the host whatever the accelerator: sums of exponentials over thousands of rows.
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        x, mismatched = _widened(x), None if mismatched is None else _widened(mismatched)
        running = loss.init_running() if running is None else jax.tree.map(np.asarray, running)
        statistics, _ = loss.statistics(x, mismatched, running)
        values, weights = loss(x._replace(statistics=statistics))
        metrics = {"loss": jnp.sum(values * weights) / jnp.sum(weights), **dict(statistics), **_by_class(loss, x)}
        if loss.needs_reference:
            metrics |= _ranking(x, prompts)
        if loss.floor is not None:
            metrics["loss_floor"] = loss.floor
        if loss.log_bound is not None:
            metrics |= _ratio_metrics(x, math.exp(-loss.log_bound))
        return {name: _finite(value) for name, value in metrics.items()}


def _widened(x: LossInputs) -> LossInputs:
    """Inputs whose real numbers are float64."""
    wide = lambda leaf: jnp.asarray(leaf, jnp.float64 if np.asarray(leaf).dtype.kind == "f" else None)  # noqa: E731
    return jax.tree.map(wide, x)


def _finite(value: Any) -> float | None:
    number = float("nan" if value is None else value)
    return number if math.isfinite(number) else None


def _by_class(loss: LossBase, x: LossInputs) -> dict[str, Any]:
    log_ratio = x.policy_logps - x.reference_logps
    present = jnp.where(x.weight > 0, 1.0, 0.0)
    told = {"lengths": x.lengths * 1.0, "logps": x.policy_logps} | (
        {"rewards": log_ratio} if loss.needs_reference else {}
    )
    metrics: dict[str, Any] = {}
    for name, member in zip(CLASSES, (x.desirable, ~x.desirable), strict=True):
        metrics[f"counts/{name}"] = jnp.sum(present * member)
    for kind, values in told.items():
        means = diagnostics.class_means(values, x.desirable, present)
        metrics |= {f"{kind}/{name}": value for name, value in zip(CLASSES, means, strict=True)}
    if loss.needs_reference:
        quantiles = diagnostics.class_quantiles(log_ratio, x.desirable, present, tuple(QUANTILES.values()))
        for name, values in zip(CLASSES, quantiles, strict=True):
            metrics |= {f"rewards/{name}_{key}": value for key, value in zip(QUANTILES, values, strict=True)}
    return metrics


def _ranking(x: LossInputs, prompts: UInt64[np.ndarray, "examples"] | None) -> dict[str, Any]:
    present = np.asarray(x.weight) > 0
    scores, desirable = np.asarray(x.policy_logps - x.reference_logps)[present], np.asarray(x.desirable)[present]
    metrics: dict[str, Any] = {"rewards/auc": auc(scores, desirable)}
    if prompts is not None:
        metrics["rewards/auc_within_prompt"] = auc_within(scores, desirable, prompts[present])
    return metrics


def _ratio_metrics(x: LossInputs, alpha: float) -> dict[str, Any]:
    """The diagnostics of the relative density ratio."""
    labelled = (x.policy_logps - x.reference_logps, x.desirable, x.weight)
    log_ratio, _, weight = labelled
    interval = diagnostics.alpha_interval(*labelled, jax.random.key(0))
    return {
        "ratio/over_bound": diagnostics.over_bound_share(log_ratio, weight, alpha=alpha),
        "ratio/normalisation": diagnostics.normalisation(*labelled, alpha=alpha),
        "ratio/effective_share": diagnostics.effective_share(log_ratio, weight),
        "ratio/preferred_rate": diagnostics.off_policy_preferred_rate(*labelled),
        "alpha_hat/value": diagnostics.alpha_hat(*labelled),
        "alpha_hat/low": interval[0],
        "alpha_hat/high": interval[1],
        "calibration/brier": diagnostics.brier(*labelled, alpha=alpha),
        "calibration/ece": diagnostics.calibration_error(diagnostics.reliability(*labelled, alpha=alpha)),
        "divergence/kl": diagnostics.kullback_leibler(*labelled),
        "divergence/pearson": diagnostics.pearson(*labelled, alpha=alpha),
        "divergence/jensen_shannon": diagnostics.jensen_shannon(*labelled, alpha=alpha),
    }


def auc(scores: Float[np.ndarray, "examples"], desirable: Bool[np.ndarray, "examples"]) -> float | None:
    """Area under the ROC curve, ties counted half: the Mann-Whitney statistic over the number of pairs.

    The probability that a desirable example's score exceeds an undesirable one's; None where a class is missing.
    """
    positives = int(desirable.sum())
    negatives = len(desirable) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[desirable].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def auc_within(
    scores: Float[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
    groups: UInt64[np.ndarray, "examples"],
) -> float | None:
    """AUC over the pairs whose two examples are of one group; None where there is no such pair."""
    order = np.argsort(groups, kind="stable")
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    won, pairs = 0.0, 0
    for members in np.split(order, borders):
        liked = int(desirable[members].sum())
        count = liked * (len(members) - liked)
        if count:
            won += count * (auc(scores[members], desirable[members]) or 0.0)
            pairs += count
    return won / pairs if pairs else None
