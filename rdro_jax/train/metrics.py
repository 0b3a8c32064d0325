"""Sums on device, means on the host, one JSON line per logging window."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdro_jax.losses import LossBase, LossInputs

CLASSES = ("chosen", "rejected")
"""The names TRL gives to the metrics of desirable and undesirable examples."""


def example_sums(x: LossInputs, loss: LossBase) -> dict[str, Float[Array, ""]]:
    """Sums over examples that become the logged means: counts, log-probs, and log-ratios where the loss has them."""
    present = x.weight > 0
    log_ratio = x.policy_logps - x.reference_logps
    sums = {"examples": present, "completion_tokens": x.lengths * present}
    for name, member in zip(CLASSES, (present & x.desirable, present & ~x.desirable), strict=True):
        sums[f"counts/{name}"] = member
        sums[f"logps/{name}"] = jnp.where(member, x.policy_logps, 0.0)
        if loss.needs_reference:
            sums[f"rewards/{name}"] = jnp.where(member, log_ratio, 0.0)
    if loss.log_bound is not None:
        sums["ratio/over_bound"] = present & (log_ratio > loss.log_bound)
    return {name: jnp.sum(value, dtype=jnp.float32) for name, value in sums.items()}


class Window:
    """Sums of the steps since the last logged line."""

    def __init__(self):
        self._sums: Counter[str] = Counter()
        self._steps = 0

    def add(self, sums: dict[str, float]) -> None:
        """Add the sums of one step."""
        self._sums.update(sums)
        self._steps += 1

    def means(self) -> dict[str, float | None]:
        """Means over the window; None (null in JSON) where no example of a class was in it.

        Units: `loss`, `logps/*` and `rewards/*` in nats, the latter two per example.
        """
        sums = self._sums
        line: dict[str, float | None] = {
            "loss": sums["loss"] / sums["weight"],
            "grad_norm": sums["grad_norm"] / self._steps,
        }
        for name in CLASSES:
            count = sums[f"counts/{name}"]
            line[f"counts/{name}"] = count
            for kind in ("rewards", "logps"):
                if f"{kind}/{name}" in sums:
                    line[f"{kind}/{name}"] = sums[f"{kind}/{name}"] / count if count else None
        chosen, rejected = line.get("rewards/chosen"), line.get("rewards/rejected")
        if chosen is not None and rejected is not None:
            line["rewards/margins"] = chosen - rejected
        if "ratio/over_bound" in sums:
            line["ratio/over_bound"] = sums["ratio/over_bound"] / sums["examples"]
        return line

    def rates(self, seconds: float) -> dict[str, float]:
        """Tokens per second and padding share of the window."""
        tokens, places = self._sums["tokens"], self._sums["places"]
        return {
            "padding": 1 - tokens / places,
            "time/step_s": seconds / self._steps,
            "throughput/tokens_per_s": tokens / seconds,
            "throughput/completion_tokens_per_s": self._sums["completion_tokens"] / seconds,
        }


class MetricsWriter:
    """Appends one JSON object per line to `metrics.jsonl`; a line is flushed as it is written."""

    def __init__(self, path: Path, *, resume_step: int):
        """Keep the lines up to `resume_step`; later ones, and a torn last line, belong to work that is repeated."""
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if path.exists() else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file; a torn last line is passed over."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
