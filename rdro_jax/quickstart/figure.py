"""The picture of the run: what was minimised, how the classes part, where the ratios lie, what the judge says."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from rdro_jax.losses.diagnostics import loss_floor

POSITIVE, NEGATIVE, BEFORE, AFTER = "#1b7837", "#b2182b", "#7f7f7f", "#2166ac"


class Panels(NamedTuple):
    """What the picture shows."""

    metrics: Sequence[dict[str, Any]]
    """Lines of the RDRO stage's metrics.jsonl."""
    log_ratios: Mapping[str, Sequence[float]]
    """Histogram of held-out log-ratios after training, as evaluations.jsonl has it: `edges` in nats per sentence, and
    counts under `chosen` and `rejected`."""
    alpha: float
    scores_before: Float[np.ndarray, "samples"]
    """The judge's scores of completions sampled before RDRO."""
    scores_after: Float[np.ndarray, "samples"]


def draw(panels: Panels, path: Path) -> Path:
    """A PNG of four panels at `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    draw_loss(axes[0, 0], panels)
    draw_margins(axes[0, 1], panels)
    draw_log_ratios(axes[1, 0], panels)
    draw_scores(axes[1, 1], panels)
    figure.suptitle("RDRO on rated movie-review sentences: SmolLM2-135M-Instruct, dequantised; a sentiment demo")
    figure.savefig(path, dpi=120)
    return path


def draw_loss(axes: Any, panels: Panels) -> None:
    """The loss of each step, between what it was before the first and the least it can be."""
    steps, loss = series(panels.metrics, "loss")
    axes.plot(steps, loss, color=AFTER, marker=".")
    for height, name in ((2 * math.log(2), "2 log 2: policy = reference"), (loss_floor(panels.alpha), "floor")):
        axes.axhline(height, color="black", linewidth=0.8, linestyle="--")
        axes.annotate(name, (0.99, height), xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    axes.set(title="RDRO loss", xlabel="optimizer step", ylabel="nats")


def draw_margins(axes: Any, panels: Panels) -> None:
    """The mean log-ratio of each class in each training batch."""
    for key, name, colour in (("chosen", "positive", POSITIVE), ("rejected", "negative", NEGATIVE)):
        steps, rewards = series(panels.metrics, f"rewards/{key}")
        axes.plot(steps, rewards, color=colour, marker=".", label=f"{name} sentences")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="Mean log-ratio s of each training batch", xlabel="optimizer step", ylabel="nats per sentence")
    axes.legend()


def draw_log_ratios(axes: Any, panels: Panels) -> None:
    """Held-out log-ratios by class, beside the bound of the ratio."""
    for key, name, colour in (("chosen", "positive", POSITIVE), ("rejected", "negative", NEGATIVE)):
        counts, edges = panels.log_ratios[key], panels.log_ratios["edges"]
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.55, label=f"{name} sentences")
    axes.axvline(-math.log(panels.alpha), color="black", linestyle="--", label="log(1/alpha): the target's upper bound")
    axes.margins(y=0.35)  # room for the legend
    axes.set(title="Held-out log-ratios", xlabel="s, nats per sentence", ylabel="sentences")
    axes.legend(fontsize=8)


def draw_scores(axes: Any, panels: Panels) -> None:
    """The judge's scores of sampled sentences, before and after."""
    bins = np.linspace(-1, 1, 21)
    both = (("before", panels.scores_before, BEFORE), ("after", panels.scores_after, AFTER))
    for name, scores, colour in both:
        axes.hist(
            scores, bins, histtype="step", linewidth=1.8, color=colour, label=f"{name} RDRO: mean {scores.mean():+.3f}"
        )
        axes.axvline(scores.mean(), color=colour, linestyle="--")
    axes.margins(y=0.25)
    axes.set(title=f"VADER score of {len(panels.scores_after)} sampled sentences", xlabel="score", ylabel="sentences")
    axes.legend(fontsize=8, loc="upper left")


def series(metrics: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the lines that hold a number under `key`."""
    points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]
