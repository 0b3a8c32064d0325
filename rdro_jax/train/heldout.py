"""What held-out rows say about a policy, given its log-ratios to the reference. float64."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt64

from rdro_jax.losses import LossBase, LossInputs, diagnostics
from rdro_jax.train.bootstrap import draw_prompts, drawn_together, interval, resampled_auc, resampled_quantiles
from rdro_jax.train.metrics import CLASSES, QUANTILES

HISTOGRAM_BINS = 40
FIELDS = tuple(zip(CLASSES, ("preferred", "other"), strict=True))


class Judged(NamedTuple):
    """Held-out examples with the loss's own values, float64."""

    x: LossInputs
    values: Float[Array, "examples"]
    weights: Float[Array, "examples"]
    """Of the loss; 0 for what does not count."""
    statistics: Mapping[str, Any]
    prompts: UInt64[np.ndarray, "examples"] | None
    """Equal for examples of one prompt."""


def heldout_metrics(
    loss: LossBase,
    x: LossInputs,
    *,
    mismatched: LossInputs | None = None,
    running: Any = None,
    prompts: UInt64[np.ndarray, "examples"] | None = None,
    paired: bool = False,
) -> dict[str, Any]:
    """Held-out loss, its statistics, and what the log-ratios say; None where a figure has nothing to stand on.

    By class: counts, mean completion length (tokens), mean log-prob and NLL per token (nats) and, of a loss with a
    reference, mean and 5 % and 95 % quantiles of the log-ratio (nats), its correlation with length, and the AUC, over
    all examples and over examples of one prompt. Of a ratio loss also the diagnostics of `rdro_jax.losses.diagnostics`,
    with its alpha, and an interval of alpha_hat. An example counts by its weight in all but counts and quantiles.

    `running` are the running statistics of training, which stay as they are. `paired` says that neighbours of one
    prompt, a desirable and an undesirable example, are a pair.
    """
    with _float64():
        judged = _judge(loss, x, mismatched, running, prompts)
        once = jnp.ones(len(judged.values))
        metrics = {**judged.statistics, **_counts(loss, judged.x), **_figures(loss, judged, once)}
        if loss.needs_reference:
            metrics |= _ranking(judged, paired)
        if loss.floor is not None:
            metrics["loss_floor"] = loss.floor
        if loss.log_bound is not None:
            low, high = _resampled(loss, judged, ("alpha_hat/value",))["alpha_hat/value"]
            metrics |= {"alpha_hat/low": low, "alpha_hat/high": high}
        return {name: _finite(value) for name, value in metrics.items()}


def heldout_intervals(
    loss: LossBase,
    x: LossInputs,
    *,
    mismatched: LossInputs | None = None,
    running: Any = None,
    prompts: UInt64[np.ndarray, "examples"] | None = None,
    paired: bool = False,
) -> dict[str, tuple[float | None, float | None]]:
    """95 % bootstrap intervals, by prompt, of `heldout_metrics`, but for counts, `loss_floor` and alpha_hat's own ends.

    Prompts are drawn with replacement, completions of one stay together; without `prompts`, or where all examples are
    of one, every example is its own.
    """
    with _float64():
        judged = _judge(loss, x, mismatched, running, prompts)
        intervals = _resampled(loss, judged, None)
        if loss.needs_reference:
            intervals |= _ranking_intervals(judged, paired)
        return {name: (_finite(low), _finite(high)) for name, (low, high) in intervals.items()}


@contextmanager
def _float64() -> Iterator[None]:
    """Sums of exponentials over thousands of rows: float64, on the host whatever the accelerator."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


def _judge(loss: LossBase, x: LossInputs, mismatched: LossInputs | None, running: Any, prompts: Any) -> Judged:
    x, mismatched = _widened(x), None if mismatched is None else _widened(mismatched)
    running = loss.init_running() if running is None else jax.tree.map(np.asarray, running)
    statistics, _ = loss.statistics(x, mismatched, running)
    values, weights = loss(x._replace(statistics=statistics))
    return Judged(x, values, weights, dict(statistics), prompts)


def _resampled(loss: LossBase, judged: Judged, names: tuple[str, ...] | None) -> dict[str, tuple[float, float]]:
    """Intervals of the figures `names`; None is all of them."""
    group = drawn_together(judged.prompts, len(judged.values))
    plain = judged._replace(prompts=None)
    blocks = [_resample(plain, group, times, loss=loss, names=names) for times in draw_prompts(1 + group.max())]
    return {name: interval(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}


@partial(jax.jit, static_argnames=("loss", "names"))
def _resample(judged: Judged, group: Any, times: Any, *, loss: LossBase, names: tuple[str, ...] | None) -> Any:
    """The figures in each resample of a block."""

    def once(drawn):
        told = _figures(loss, judged, drawn[group] * 1.0)
        return {name: told[name] for name in names or told}

    return jax.vmap(once)(times)


def heldout_pictures(loss: LossBase, x: LossInputs) -> dict[str, Any]:
    """Histogram of the log-ratio by class (nats, one set of edges), and the reliability curve of a ratio loss."""
    if not loss.needs_reference:
        return {}
    present = np.asarray(x.weight) > 0
    scores = np.subtract(x.policy_logps, x.reference_logps, dtype=np.float64)[present]
    desirable = np.asarray(x.desirable)[present]
    edges = np.histogram_bin_edges(scores[np.isfinite(scores)], HISTOGRAM_BINS)
    counts = [np.histogram(scores[member], edges)[0].tolist() for member in (desirable, ~desirable)]
    pictures: dict[str, Any] = {"log_ratio": {"edges": edges.tolist(), **dict(zip(CLASSES, counts, strict=True))}}
    if loss.log_bound is not None:
        with _float64():
            labelled = (
                jnp.asarray(values) for values in (scores, desirable, np.asarray(x.weight, np.float64)[present])
            )
            curve = diagnostics.reliability(*labelled, alpha=math.exp(-loss.log_bound))
        pictures["reliability"] = {name: [_finite(v) for v in values] for name, values in curve._asdict().items()}
    return pictures


def _widened(x: LossInputs) -> LossInputs:
    """Inputs whose real numbers are float64."""
    wide = lambda leaf: jnp.asarray(leaf, jnp.float64 if np.asarray(leaf).dtype.kind == "f" else None)  # noqa: E731
    return jax.tree.map(wide, x)


def _finite(value: Any) -> float | None:
    number = float("nan" if value is None else value)
    return number if math.isfinite(number) else None


def _counts(loss: LossBase, x: LossInputs) -> dict[str, Any]:
    """What no weight can resample: how many examples of each class there are, and quantiles."""
    present = jnp.where(x.weight > 0, 1.0, 0.0)
    metrics: dict[str, Any] = {}
    for name, member in zip(CLASSES, (x.desirable, ~x.desirable), strict=True):
        metrics[f"counts/{name}"] = jnp.sum(present * member)
    if loss.needs_reference:
        log_ratio = x.policy_logps - x.reference_logps
        quantiles = diagnostics.class_quantiles(
            log_ratio, x.desirable, present, probabilities=tuple(QUANTILES.values())
        )
        for name, values in zip(CLASSES, quantiles, strict=True):
            metrics |= {f"rewards/{name}_{key}": value for key, value in zip(QUANTILES, values, strict=True)}
    return metrics


def _figures(loss: LossBase, judged: Judged, times: Float[Array, "examples"]) -> dict[str, Any]:
    """Figures that are means or made of means, each example counted as often as `times` says."""
    x = judged.x._replace(weight=judged.x.weight * times)
    metrics = {"loss": diagnostics.mean(judged.values, judged.weights * times), **_class_figures(loss, x)}
    if loss.log_bound is not None:
        metrics |= _ratio_figures(x, math.exp(-loss.log_bound))
    return metrics


def _class_figures(loss: LossBase, x: LossInputs) -> dict[str, Any]:
    log_ratio, lengths = x.policy_logps - x.reference_logps, x.lengths * 1.0
    told = {"lengths": lengths, "logps": x.policy_logps} | ({"rewards": log_ratio} if loss.needs_reference else {})
    means = {kind: diagnostics.class_means(values, x.desirable, x.weight) for kind, values in told.items()}
    metrics = {f"{kind}/{name}": getattr(both, field) for kind, both in means.items() for name, field in FIELDS}
    metrics |= {f"nll/{name}": -metrics[f"logps/{name}"] / metrics[f"lengths/{name}"] for name in CLASSES}
    if loss.needs_reference:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        members = {"all": x.weight, "chosen": x.weight * x.desirable, "rejected": x.weight * ~x.desirable}
        for name, weight in members.items():
            metrics[f"length_correlation/{name}"] = diagnostics.correlation(log_ratio, lengths, weight)
    return metrics


def _ratio_figures(x: LossInputs, alpha: float) -> dict[str, Any]:
    """The diagnostics of the relative density ratio."""
    labelled = (x.policy_logps - x.reference_logps, x.desirable, x.weight)
    log_ratio, desirable, weight = labelled
    over = {name: jnp.where(member, weight, 0.0) for name, member in zip(CLASSES, (desirable, ~desirable), strict=True)}
    return {
        "ratio/over_bound": diagnostics.over_bound_share(log_ratio, weight, alpha=alpha),
        **{
            f"ratio/over_bound_{name}": diagnostics.over_bound_share(log_ratio, part, alpha=alpha)
            for name, part in over.items()
        },
        "ratio/normalisation": diagnostics.normalisation(*labelled, alpha=alpha),
        "ratio/effective_share": diagnostics.effective_share(log_ratio, weight),
        "ratio/preferred_rate": diagnostics.off_policy_preferred_rate(*labelled),
        "alpha_hat/value": diagnostics.alpha_hat(*labelled),
        "calibration/brier": diagnostics.brier(*labelled, alpha=alpha),
        "calibration/ece": diagnostics.calibration_error(diagnostics.reliability(*labelled, alpha=alpha)),
        "divergence/kl": diagnostics.kullback_leibler(*labelled),
        "divergence/policy_kl": diagnostics.policy_kl(log_ratio, weight),
        "divergence/reference_kl": diagnostics.reference_kl(log_ratio, weight),
        "divergence/pearson": diagnostics.pearson(*labelled, alpha=alpha),
        "divergence/jensen_shannon": diagnostics.jensen_shannon(*labelled, alpha=alpha),
    }


class _Ranked(NamedTuple):
    """The examples present, as numpy arrays."""

    scores: Float[np.ndarray, "examples"]
    """Log-ratios, nats."""
    desirable: Bool[np.ndarray, "examples"]
    weight: Float[np.ndarray, "examples"]
    prompts: UInt64[np.ndarray, "examples"] | None


def _ranked(judged: Judged) -> _Ranked:
    x, prompts = judged.x, judged.prompts
    present = np.asarray(x.weight) > 0
    scores, desirable, weight = (
        np.asarray(values)[present] for values in (x.policy_logps - x.reference_logps, x.desirable, x.weight)
    )
    return _Ranked(scores, desirable, weight, None if prompts is None else prompts[present])


def _ranking(judged: Judged, paired: bool) -> dict[str, Any]:
    scores, desirable, weight, prompts = _ranked(judged)
    metrics: dict[str, Any] = {"rewards/auc": auc(scores, desirable, weight)}
    if prompts is not None:
        metrics["rewards/auc_within_prompt"] = _share(*within_prompts(scores, desirable, weight, prompts))
        if paired:
            metrics["rewards/accuracies"] = _share(*won_pairs(scores, desirable, weight, prompts))
    return metrics


def _share(won: Float[np.ndarray, "parts"], of: Float[np.ndarray, "parts"]) -> float | None:
    return float(won.sum() / of.sum()) if of.sum() else None


def _ranking_intervals(judged: Judged, paired: bool) -> dict[str, tuple[float, float]]:
    scores, desirable, weight, prompts = _ranked(judged)
    group = drawn_together(prompts, len(scores))
    draws = list(draw_prompts(1 + group.max()))
    whole = interval(np.concatenate([resampled_auc(scores, desirable, times[:, group] * weight) for times in draws]))
    intervals = {"rewards/auc": whole}
    for name, member in zip(CLASSES, (desirable, ~desirable), strict=True):
        drawn = (
            resampled_quantiles(scores[member], times[:, group[member]], tuple(QUANTILES.values())) for times in draws
        )
        intervals |= {
            f"rewards/{name}_{key}": interval(values)
            for key, values in zip(QUANTILES, np.concatenate(list(drawn)).T, strict=True)
        }
    if prompts is None:
        return intervals
    # A prompt drawn twice is two prompts: no pair has a member in each.
    won, pairs = within_prompts(scores, desirable, weight, prompts)
    intervals["rewards/auc_within_prompt"] = whole if len(pairs) == 1 else _share_interval(won, pairs, draws)
    if paired:
        won, pairs = won_pairs(scores, desirable, weight, prompts)
        won, pairs = (np.bincount(group, weights=values) for values in (won, pairs))
        intervals["rewards/accuracies"] = _share_interval(won, pairs, draws)
    return intervals


def _share_interval(
    won: Float[np.ndarray, "prompts"], of: Float[np.ndarray, "prompts"], draws: list[Any]
) -> tuple[float, float]:
    """Of the share won, where each prompt counts as often as it was drawn."""
    times = np.concatenate(draws)
    count = times @ of
    return interval(np.divide(times @ won, count, out=np.full(len(times), np.nan), where=count > 0))


def auc(
    scores: Float[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
    weight: Float[np.ndarray, "examples"] | None = None,
) -> float | None:
    """Area under the ROC curve, ties counted half, each pair by the product of its weights.

    The probability that a desirable example's score exceeds an undesirable one's; None where a class is missing.
    """
    if desirable.all() or not desirable.any():
        return None
    once = np.ones(len(scores)) if weight is None else weight
    return float(resampled_auc(scores, desirable, once[None])[0])


def within_prompts(
    scores: Float[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
    weight: Float[np.ndarray, "examples"],
    groups: UInt64[np.ndarray, "examples"],
) -> tuple[Float[np.ndarray, "prompts"], Float[np.ndarray, "prompts"]]:
    """Of each group in sorted order, the weight of its pairs of both classes that are won, ties half, and of all."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    pairs = np.array([weight[part][desirable[part]].sum() * weight[part][~desirable[part]].sum() for part in parts])
    shares = np.array([auc(scores[part], desirable[part], weight[part]) or 0.0 for part in parts])
    return shares * pairs, pairs


def won_pairs(
    scores: Float[np.ndarray, "examples"],
    desirable: Bool[np.ndarray, "examples"],
    weight: Float[np.ndarray, "examples"],
    groups: UInt64[np.ndarray, "examples"],
) -> tuple[Float[np.ndarray, "examples"], Float[np.ndarray, "examples"]]:
    """Of each example its pair's weight if the pair is won, and if it is one: both 0 for what begins no pair.

    A pair is neighbours of one group with the desirable example first; its weight is that example's, and it is won
    where the first score is the higher.
    """
    begins = np.append(desirable[:-1] & ~desirable[1:] & (groups[:-1] == groups[1:]), False)
    higher = np.append(scores[:-1] > scores[1:], False)
    return weight * (begins & higher), weight * begins
