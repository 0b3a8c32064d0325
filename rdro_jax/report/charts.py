"""Curves, bands and histograms of runs, as Bokeh figures."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from rdro_jax.report.runs import Run, Series

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's: told apart by those who see colours differently."""
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
MOST_POINTS = 2000
"""Points of a drawn curve."""
MOST_HISTOGRAMS = 100
"""Evaluations whose histograms are drawn."""
HEIGHT, LEGEND_HEIGHT = 300, 22
"""Pixels of a chart, and of each line of a legend beneath it."""


class Panel(NamedTuple):
    """A chart of metrics over steps."""

    title: str
    unit: str
    keys: tuple[str, ...]
    """Metrics drawn, those that a run has; evaluations, under `eval_`, with dots."""
    level: str | float | None = None
    """What a horizontal line is drawn at: a number, or a figure of the loss, one of LEVELS."""
    band: tuple[str, str] | None = None
    """Metrics between which a band is drawn."""
    logarithmic: bool = False


LEVELS = {"floor": "floor", "log_bound": "log(1/alpha)", "alpha": "alpha"}
"""Figure of the loss -> what its line is called."""
CLASSES = ("chosen", "rejected")
PANELS = (
    Panel("Loss", "nats per example", ("loss", "eval_loss"), level="floor"),
    Panel("Margin: mean log-ratio of desirable minus undesirable", "nats", ("rewards/margins",)),
    Panel(
        "Log-ratio by class",
        "nats",
        tuple(f"{part}rewards/{name}" for part in ("", "eval_") for name in CLASSES),
        level="log_bound",
    ),
    Panel("Log-ratio of desirable examples, 5 % to 95 %", "nats", ("rewards/chosen",), "log_bound",
          ("rewards/chosen_p5", "rewards/chosen_p95")),
    Panel("Log-ratio of undesirable examples, 5 % to 95 %", "nats", ("rewards/rejected",), "log_bound",
          ("rewards/rejected_p5", "rewards/rejected_p95")),
    Panel("Log-prob by class", "nats per completion",
          tuple(f"{part}logps/{name}" for part in ("", "eval_") for name in CLASSES)),
    Panel("AUC of the log-ratio, held-out", "share", ("eval_rewards/auc", "eval_rewards/auc_within_prompt")),
    Panel("KL and its kin, held-out", "nats",
          tuple(f"eval_divergence/{name}" for name in ("kl", "policy_kl", "reference_kl", "jensen_shannon"))),
    Panel("Normalisation: alpha E+[r] + (1 - alpha) E-[r], 1 at the optimum", "",
          ("ratio/normalisation", "eval_ratio/normalisation"), level=1.0),
    Panel("Effective sample size over sample size, wanted above alpha", "share",
          ("ratio/effective_share", "eval_ratio/effective_share"), level="alpha"),
    Panel("Examples with a ratio above 1/alpha", "share", ("ratio/over_bound", "eval_ratio/over_bound")),
    Panel("alpha_hat, held-out, with its 95 % interval", "", ("eval_alpha_hat/value",),
          level="alpha", band=("eval_alpha_hat/low", "eval_alpha_hat/high")),
    Panel("Calibration, held-out", "", ("eval_calibration/ece", "eval_calibration/brier")),
    Panel("Gradient norm", "", ("grad_norm",), logarithmic=True),
    Panel("Learning rate", "", ("learning_rate",)),
    Panel("Throughput", "tokens per second", ("throughput/tokens_per_s", "throughput/completion_tokens_per_s")),
    Panel("Time", "seconds", ("time/step_s", "time/eval_s", "time/save_s")),
    Panel("Padding", "share of places", ("padding",)),
    Panel("Data wait: batches waited for or placed, mostly while devices work", "share of time", ("time/data_wait",)),
    Panel("Goodput", "share of time", ("throughput/goodput",)),
    Panel("Model FLOP utilisation", "share of peak", ("throughput/mfu",)),
    Panel("Skipped steps", "per line", ("skipped_steps",)),
)  # fmt: skip


def draw(runs: Sequence[Run]) -> list[Any]:
    """The figures of one run, or of several on top of each other; what no run has a number for is left out."""
    drawn = [draw_panel(panel, runs) for panel in PANELS if any(_keys(panel, run) for run in runs)]
    shown = [run for run in runs if run.evaluations]
    histograms = [draw_histograms(run, name) for run in shown for name in CLASSES if "log_ratio" in run.evaluations[-1]]
    curves = [draw_reliability(shown)] if any("reliability" in run.evaluations[-1] for run in shown) else []
    return [*drawn, *histograms, *curves]


def draw_panel(panel: Panel, runs: Sequence[Run]) -> Any:
    """Curves of the panel's metrics over steps."""
    plot = make_figure(panel.title, "optimizer step", panel.unit, "log" if panel.logarithmic else "linear")
    labels: dict[str, list[Any]] = {}
    for run, key, colour, dash in _styles(panel, runs):
        series = thin(run.series[key])
        values = np.where(series.values > 0, series.values, np.nan) if panel.logarithmic else series.values
        label = key if len(runs) == 1 else f"{run.name}: {key}"
        drawn = [_add_line(plot, series.steps, values, colour, line_dash=dash, line_width=1.6)]
        marked = np.isfinite(values) if key.startswith("eval_") else _alone(values)
        if marked.any():
            drawn.append(_add_dots(plot, series.steps[marked], values[marked], colour))
        labels[label] = drawn
    for index, run in enumerate(runs):
        _draw_band(plot, panel, run, COLOURS[index % len(COLOURS)])
    _draw_levels(plot, panel.level, runs)
    _add_legend(plot, labels)
    return plot


def _alone(values: Float64[np.ndarray, "points"]) -> Bool[np.ndarray, "points"]:
    """Points between gaps, which no line reaches."""
    known = np.isfinite(values)
    joined = known[:-1] & known[1:]
    return known & ~np.append(joined, False) & ~np.append(False, joined)


def _styles(panel: Panel, runs: Sequence[Run]) -> Iterator[tuple[Run, str, str, str]]:
    """(run, metric, colour, dash) of every curve: colours tell runs apart or, of one run, metrics."""
    for index, run in enumerate(runs):
        for number, key in enumerate(_keys(panel, run)):
            if len(runs) == 1:
                yield run, key, COLOURS[number % len(COLOURS)], "solid"
            else:
                yield run, key, COLOURS[index % len(COLOURS)], DASHES[number % len(DASHES)]


def _keys(panel: Panel, run: Run) -> list[str]:
    """Metrics of the panel that the run has; of skipped steps only where there were any."""
    return [key for key in panel.keys if key in run.series and (key != "skipped_steps" or run.skipped_steps())]


def _draw_band(plot: Any, panel: Panel, run: Run, colour: str) -> None:
    from bokeh.models import ColumnDataSource, VArea

    if panel.band is None or not all(key in run.series for key in panel.band):
        return
    low, high = (run.series[key] for key in panel.band)
    shared, of_low, of_high = np.intersect1d(low.steps, high.steps, return_indices=True)
    every = max(1, -(-len(shared) // MOST_POINTS))
    ends = {"y1": low.values[of_low][::every], "y2": high.values[of_high][::every]}
    band = VArea(x="x", y1="y1", y2="y2", fill_color=colour, fill_alpha=0.18)
    plot.add_glyph(ColumnDataSource({"x": shared[::every], **ends}), band)


def _draw_levels(plot: Any, level: str | float | None, runs: Sequence[Run]) -> None:
    """A horizontal line for each run's level, in the run's colour; in black where it is the same for all."""
    from bokeh.models import Label, Span

    found = [(COLOURS[index % len(COLOURS)], _level(level, run)) for index, run in enumerate(runs)]
    lines = {value: colour for colour, value in found if value is not None}
    if lines:
        plot.y_range.range_padding = 0.2  # room for what the line is called above the topmost
    for value, colour in lines.items():
        colour = colour if len(lines) > 1 else "#000000"
        plot.add_layout(Span(location=value, dimension="width", line_color=colour, line_dash="dashed"))
        # A curve of one point, invisible, lets the axes reach the line.
        _add_dots(plot, [runs[0].last_step()], [value], colour, size=0)
        name = LEVELS[level] if isinstance(level, str) else f"{value:g}"
        look: dict[str, Any] = {"text_font_size": "10px", "text_color": colour, "background_fill_color": "#ffffffb0"}
        plot.add_layout(Label(x=8, y=value, x_units="screen", y_offset=2, text=name, **look))


def _level(level: str | float | None, run: Run) -> float | None:
    value = run.loss.get(level) if isinstance(level, str) else level
    value = run.latest("eval_loss_floor") if value is None and level == "floor" else value
    return float(value) if isinstance(value, int | float) else None


def draw_histograms(run: Run, name: str) -> Any:
    """Held-out log-ratios of a class at each evaluation: the darker, the more examples."""
    from bokeh.models import ColumnDataSource, Quad

    lines = [line for line in run.evaluations if name in line.get("log_ratio", {})]
    lines = lines[:: -(-len(lines) // MOST_HISTOGRAMS)]
    title = "desirable" if name == "chosen" else "undesirable"
    plot = make_figure(
        f"{run.name}: held-out log-ratios of {title} examples, darker where more", "optimizer step", "nats"
    )
    columns: dict[str, list[np.ndarray]] = {"left": [], "right": [], "bottom": [], "top": [], "alpha": []}
    before = 0
    for line in lines:
        edges, counts = np.array(line["log_ratio"]["edges"], float), np.array(line["log_ratio"][name], float)
        times = (np.full(len(counts), step, float) for step in (before, line["step"]))
        for column, values in zip(columns.values(), (*times, edges[:-1], edges[1:], counts), strict=True):
            column.append(values)
        columns["alpha"][-1] /= max(1.0, counts.max())
        before = line["step"]
    source = {key: np.concatenate(parts) for key, parts in columns.items()}
    sides = {side: side for side in ("left", "right", "bottom", "top")}
    look = {"fill_alpha": "alpha", "fill_color": COLOURS[name == "rejected"], "line_color": None}
    plot.add_glyph(ColumnDataSource(source), Quad(**sides, **look))
    _draw_levels(plot, "log_bound", [run])
    return plot


def draw_reliability(runs: Sequence[Run]) -> Any:
    """What min(alpha r, 1) forecast against the share of desirable examples observed, at each run's last evaluation."""
    plot = make_figure("Reliability of alpha r at the last evaluation", "forecast P(desirable)", "observed share")
    _add_line(plot, [0, 1], [0, 1], "#999999", line_dash="dashed")
    labels: dict[str, list[Any]] = {}
    for index, run in enumerate(runs):
        curve = run.evaluations[-1].get("reliability")
        if curve is None:
            continue
        columns = [np.array([np.nan if value is None else value for value in curve[name]], float)
                   for name in ("forecast", "observed")]  # fmt: skip
        known = ~np.isnan(columns[0])
        (forecast, observed), colour = (column[known] for column in columns), COLOURS[index % len(COLOURS)]
        labels[run.name] = [_add_line(plot, forecast, observed, colour), _add_dots(plot, forecast, observed, colour)]
    _add_legend(plot, labels)
    return plot


def make_figure(title: str, x: str, y: str, y_axis_type: Literal["linear", "log"] = "linear") -> Any:
    """An empty chart with axes that say what they are."""
    # Not `bokeh.plotting.figure`: what it adds to these parts takes longer to import and to make than they do.
    from bokeh import models

    logarithmic = y_axis_type == "log"
    tools = [getattr(models, f"{name}Tool")() for name in ("Pan", "BoxZoom", "WheelZoom", "Reset", "Hover")]
    plot = models.Plot(
        title=models.Title(text=title),
        x_range=models.DataRange1d(),
        y_range=models.DataRange1d(),
        y_scale=models.LogScale() if logarithmic else models.LinearScale(),
        height=HEIGHT,
        sizing_mode="stretch_width",
        toolbar=models.Toolbar(tools=tools, active_scroll=None, logo=None, autohide=True),
    )
    below = models.LinearAxis(axis_label=x)
    left = models.LogAxis(axis_label=y) if logarithmic else models.LinearAxis(axis_label=y)
    plot.add_layout(below, "below")
    plot.add_layout(left, "left")
    plot.add_layout(models.Grid(axis=below, dimension=0))
    plot.add_layout(models.Grid(axis=left, dimension=1))
    return plot


# Bokeh's own `plot.line` makes five glyphs for every curve, for selections that these charts do not have.
def _add_line(plot: Any, x: Any, y: Any, colour: str, **look: Any) -> Any:
    from bokeh.models import ColumnDataSource, Line

    return plot.add_glyph(ColumnDataSource({"x": x, "y": y}), Line(x="x", y="y", line_color=colour, **look))


def _add_dots(plot: Any, x: Any, y: Any, colour: str, size: int = 6) -> Any:
    from bokeh.models import ColumnDataSource, Scatter

    dots = Scatter(x="x", y="y", line_color=colour, fill_color=colour, size=size)
    return plot.add_glyph(ColumnDataSource({"x": x, "y": y}), dots)


def _add_legend(plot: Any, labels: dict[str, list[Any]]) -> None:
    """A legend beneath the chart, a click on which hides a curve; none where the title says it all."""
    from bokeh.models import Legend, LegendItem

    if len(labels) > 1:
        items = [LegendItem(label=label, renderers=drawn) for label, drawn in labels.items()]
        columns = 1 if max(map(len, labels)) > 40 else 2
        look: dict[str, Any] = {
            "label_text_font_size": "10px",
            "label_height": 8,
            "spacing": 12,
            "padding": 4,
            "border_line_color": None,
        }
        plot.add_layout(Legend(items=items, click_policy="hide", ncols=columns, location="left", **look), "below")
        plot.height += LEGEND_HEIGHT * math.ceil(len(labels) / columns)


def thin(series: Series) -> Series:
    """At most MOST_POINTS points: the least and the greatest of each stretch, so that no spike is lost."""
    count = len(series.steps)
    if count <= MOST_POINTS:
        return series
    stretch = math.ceil(count / (MOST_POINTS // 2))
    starts = np.arange(0, count, stretch)
    rows = np.pad(series.values, (0, len(starts) * stretch - count), constant_values=np.nan).reshape(-1, stretch)
    # A stretch of nothing but NaN keeps its first point, the gap.
    least, greatest = (
        np.where(np.isnan(rows), np.inf, rows).argmin(1),
        np.where(np.isnan(rows), -np.inf, rows).argmax(1),
    )
    kept = np.unique(np.concatenate([starts + least, starts + greatest]))
    return Series(series.steps[kept], series.values[kept])
