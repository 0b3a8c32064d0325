"""What held-out rows say about a policy, given its log-ratios to the reference. numpy, float64."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from rdro_jax.losses import LossBase, LossInputs
from rdro_jax.train.metrics import CLASSES


def heldout_metrics(
    loss: LossBase,
    policy_logps: Float[np.ndarray, "examples"],
    reference_logps: Float[np.ndarray, "examples"],
    lengths: Int[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
) -> dict[str, Any]:
    """Held-out loss, mean log-ratio and log-prob by class, and for ratio losses AUC and the share over the bound.

    `lengths` are completion tokens. `rewards/auc` is the probability that a desirable row's log-ratio exceeds an
    undesirable one's; None where a class is missing. `ratio/over_bound` is the share of r > 1/alpha.
    """
    arrays = (policy_logps, reference_logps, lengths, desirable, np.ones(len(lengths), np.float32))
    inputs = LossInputs(*map(jnp.asarray, arrays))
    values, weights = (np.asarray(part, np.float64) for part in loss(inputs))
    log_ratio = policy_logps.astype(np.float64) - reference_logps
    metrics: dict[str, Any] = {"loss": float((values * weights).sum() / weights.sum())}
    for name, member in zip(CLASSES, (desirable, ~desirable), strict=True):
        metrics[f"counts/{name}"] = int(member.sum())
        metrics[f"logps/{name}"] = _mean(policy_logps[member])
        if loss.needs_reference:
            metrics[f"rewards/{name}"] = _mean(log_ratio[member])
    if loss.needs_reference:
        metrics["rewards/auc"] = auc(log_ratio, desirable)
    if loss.log_bound is not None:
        metrics["ratio/over_bound"] = float((log_ratio > loss.log_bound).mean())
    return metrics


def auc(scores: Float[np.ndarray, "examples"], desirable: Bool[np.ndarray, "examples"]) -> float | None:
    """Area under the ROC curve, ties counted half: the Mann-Whitney statistic over the number of pairs."""
    positives = int(desirable.sum())
    negatives = len(desirable) - positives
    if not positives or not negatives:
        return None
    ranks = rankdata(scores)[desirable].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def _mean(values: Float[np.ndarray, "members"]) -> float | None:
    return float(values.mean(dtype=np.float64)) if len(values) else None
