"""Sums on device, means on the host, one JSON line per logging window."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdro_jax.batch import Batch
from rdro_jax.losses import LossBase, LossInputs
from rdro_jax.losses.diagnostics import class_quantiles
from rdro_jax.run_files import read_metrics

CLASSES = ("chosen", "rejected")
"""The names TRL gives to the metrics of desirable and undesirable examples."""
TOTALS = (
    *("loss", "weight", "examples", "tokens", "completion_tokens", "places", "grad_norm"),
    *("skipped", "first_bad_leaf"),
)
"""Metrics of a step that are no statistic of its loss; those with a slash in their names are neither."""


QUANTILES = {"p5": 0.05, "p95": 0.95}
LARGEST_LOG_RATIO = 40.0
"""Nats. A ratio beyond exp(40) says no more than one at it, and its square would overflow float32."""


def batch_metrics(x: LossInputs, batch: Batch, loss: LossBase) -> dict[str, Float[Array, ""]]:
    """What is told of a global batch beside its loss: sums over its examples, and quantiles of each class.

    Sums: examples, tokens, places for tokens, completion tokens; by class counts, completion tokens and log-probs; of a
    loss with a reference log-ratios, ratios and their squares by class, and the examples whose ratio exceeds the loss'
    bound. A quantile (of the log-ratio, in nats) is 0 where `counts/*` is.
    """
    present = x.weight > 0
    log_ratio = x.policy_logps - x.reference_logps
    ratio = jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))
    sums = {"examples": present, "tokens": batch.segment_ids > 0, "completion_tokens": x.lengths * present}
    for name, member in zip(CLASSES, (present & x.desirable, present & ~x.desirable), strict=True):
        told = {"counts": 1.0, "lengths": x.lengths, "logps": x.policy_logps}
        if loss.needs_reference:
            told |= {"rewards": log_ratio, "ratio": ratio, "ratio_squared": ratio**2}
        sums |= {f"{kind}/{name}": jnp.where(member, values, 0.0) for kind, values in told.items()}
    if loss.log_bound is not None:
        sums["ratio/over_bound"] = present & (log_ratio > loss.log_bound)
    metrics = {name: jnp.sum(value, dtype=jnp.float32) for name, value in sums.items()}
    metrics["places"] = jnp.float32(batch.segment_ids.size)
    return metrics | (_quantiles(x, log_ratio) if loss.needs_reference else {})


def _quantiles(x: LossInputs, log_ratio: Float[Array, "examples"]) -> dict[str, Float[Array, ""]]:
    by_class = class_quantiles(log_ratio, x.desirable, x.weight, probabilities=tuple(QUANTILES.values()))
    return {
        f"rewards/{name}_{key}": jnp.nan_to_num(value)
        for name, values in zip(CLASSES, by_class, strict=True)
        for key, value in zip(QUANTILES, values, strict=True)
    }


class Window:
    """Metrics of the steps since the last logged line."""

    def __init__(self, loss: LossBase, saved: dict[str, Any] | None = None):
        """An empty window, or the one that `saved()` was taken of."""
        self._loss = loss
        saved = saved or {"sums": {}, "present": {}, "steps": 0, "skipped": 0}
        self._sums: Counter[str] = Counter(saved["sums"])
        self._present: Counter[str] = Counter(saved["present"])
        self._steps: int = saved["steps"]
        self._before = saved
        self._skipped: int = saved["skipped"]

    def saved(self) -> dict[str, Any]:
        """The window as JSON, for a checkpoint: a resumed run logs what it would have logged."""
        counts = {"steps": self._steps, "skipped": self._skipped}
        return {"sums": dict(self._sums), "present": dict(self._present)} | counts

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one step; a step that was skipped is counted and nothing else."""
        if metrics["skipped"]:
            self._skipped += 1
            return
        self._sums.update(metrics)
        self._present.update(name for name in CLASSES if metrics[f"counts/{name}"])
        self._steps += 1

    def means(self) -> dict[str, float | None]:
        """Means over the window; None (null in JSON) where no example of a class was in it.

        None too is `ratio/effective_share` where no ratio has a square in float32: log-ratios beyond about -44 nats.

        Units: `loss`, `logps/*`, `rewards/*` (log-ratios) in nats, `lengths/*` in tokens, all per example; `padding` is
        the share of places without a token. Quantiles,
        `grad_norm` and the loss's statistics are means over steps that were not skipped. `ratio/normalisation` is
        alpha E+[r] + (1 - alpha) E-[r], `ratio/effective_share` the effective sample size over the sample size
        (`losses.diagnostics`).
        """
        sums = self._sums
        line: dict[str, float | None] = {"skipped_steps": self._skipped}
        if not self._steps:
            return line
        line |= {"loss": sums["loss"] / sums["weight"], "grad_norm": sums["grad_norm"] / self._steps}
        line["padding"] = 1 - sums["tokens"] / sums["places"]
        for name in CLASSES:
            line |= self._of_class(name)
        if self._loss.needs_reference:
            line |= self._of_ratios(line)
        return line | {name: sums[name] / self._steps for name in sums if name not in TOTALS and "/" not in name}

    def _of_class(self, name: str) -> dict[str, float | None]:
        sums, count, steps = self._sums, self._sums[f"counts/{name}"], self._present[name]
        kinds = [kind for kind in ("rewards", "logps", "lengths") if f"{kind}/{name}" in sums]
        quantiles = [f"rewards/{name}_{key}" for key in QUANTILES if f"rewards/{name}_{key}" in sums]
        return (
            {f"counts/{name}": count}
            | {f"{kind}/{name}": sums[f"{kind}/{name}"] / count if count else None for kind in kinds}
            | {key: sums[key] / steps if steps else None for key in quantiles}
        )

    def _of_ratios(self, line: dict[str, float | None]) -> dict[str, float | None]:
        sums = self._sums
        chosen, rejected = (line[f"rewards/{name}"] for name in CLASSES)
        margin = None if chosen is None or rejected is None else chosen - rejected
        told: dict[str, float | None] = {"rewards/margins": margin}
        total, squared = (sum(sums[f"{kind}/{name}"] for name in CLASSES) for kind in ("ratio", "ratio_squared"))
        told["ratio/effective_share"] = total**2 / (sums["examples"] * squared) if squared else None
        if self._loss.log_bound is not None:
            told["ratio/over_bound"] = sums["ratio/over_bound"] / sums["examples"]
            alpha = math.exp(-self._loss.log_bound)
            preferred, other = (sums[f"ratio/{name}"] / (sums[f"counts/{name}"] or math.nan) for name in CLASSES)
            told["ratio/normalisation"] = None if margin is None else alpha * preferred + (1 - alpha) * other
        return told

    def rates(self, seconds: float, waited: float) -> dict[str, float]:
        """Tokens per second of the steps taken here; `time/data_wait` is the share of `seconds` spent on batches.

        `seconds` are those of the steps, without evaluations and saves between them. What the window was restored with
        took its time elsewhere and is left out. `waited` are seconds the host waited for batches or placed them, mostly
        while the devices were at work: the share is the most that faster data could save.
        """
        steps = self._steps - self._before["steps"]
        if not steps:
            return {}
        tokens, scored = (self._sums[n] - self._before["sums"].get(n, 0) for n in ("tokens", "completion_tokens"))
        return {
            "time/step_s": seconds / steps,
            "time/data_wait": waited / seconds,
            "throughput/tokens_per_s": tokens / seconds,
            "throughput/completion_tokens_per_s": scored / seconds,
        }


class MetricsWriter:
    """Appends one JSON object per line to `metrics.jsonl`; a line is flushed as it is written."""

    def __init__(self, path: Path, *, resume_step: int, repeated: str | None = None):
        """Keep the lines up to `resume_step`; later ones belong to work that is repeated.

        So do, of `resume_step` itself, lines of which all names begin with `repeated`.
        """
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if path.exists() else []
        if repeated is not None:
            again = lambda line: all(name.startswith(repeated) for name in {*line} - {"step"})  # noqa: E731
            kept = [line for line in kept if line["step"] < resume_step or not again(line)]
        unfinished = path.with_suffix(".tmp")  # in one move: on a full disk the old lines stay
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.replace(path)
        self._file = path.open("a")
        self.latest = {name: value for line in kept for name, value in line.items() if name != "step"}
        """The newest value of every metric in the lines that were kept."""

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
