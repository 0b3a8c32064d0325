"""The figures of a benchmark as one picture: `python -m benchmarks.figure [BENCH.json]` draws it again."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

OURS, OTHER, SHORT, MIDDLE = "#2166ac", "#b2182b", "#92c5de", "#4393c3"
TOKENS, VOCABULARY = "tokens of a step", "vocabulary, thousands"


def draw(figures: dict[str, Any], path: Path) -> Path:
    """A PNG of eight panels at `path`: two of the head's growth, one each of the other benchmarks."""
    figure = Figure(figsize=(17, 8), layout="constrained")
    axes = figure.subplots(2, 4)
    draw_tokens(axes[0, 0], figures)
    draw_depth(axes[0, 1], figures)
    draw_devices(axes[0, 2], figures)
    draw_packing(axes[0, 3], figures)
    draw_variants(axes[1, 0], figures)
    draw_vocab_seconds(axes[1, 1], figures)
    draw_vocab_bytes(axes[1, 2], figures)
    draw_reference(axes[1, 3], figures)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    size, machine = figures["size"], figures["machine"]
    figure.suptitle(
        f"make bench: {size['layers']} layers, d_model {size['d_model']}, vocabulary {size['vocab']:,}, rows of "
        f"{size['seq']} tokens, float32; medians of {size['repeats']}; {machine['cpus']} cores, jax {machine['jax']}"
    )
    figure.savefig(path, dpi=110)
    return path


def draw_tokens(axes: Any, figures: dict[str, Any]) -> None:
    """The steps of several shapes, and the fit."""
    steps, fit = list(figures["shapes"].values()), figures["tokens"]["fit"]
    longest = max(step["row_tokens"] for step in steps)
    for length, colour in zip(sorted({step["row_tokens"] for step in steps}), (SHORT, MIDDLE, OURS), strict=True):
        of_length = [step for step in steps if step["row_tokens"] == length]
        axes.plot(*_columns(of_length, "tokens", "cpu_seconds"), "o", color=colour, label=f"rows of {length} tokens")
        tokens = np.array([0, max(step["tokens"] for step in of_length)])
        slope = fit["us_per_token"] + fit["attention_us_per_token_at_longest"] * length / longest
        axes.plot(tokens, fit["fixed_ms"] / 1e3 + slope * tokens / 1e6, color=colour, linewidth=1)
    _label(axes, f"Step over tokens, and its fit (R² {fit['r_squared']:.4f})", TOKENS, "CPU-seconds")
    axes.legend(fontsize=8)


def draw_depth(axes: Any, figures: dict[str, Any]) -> None:
    """Step and compile time of the narrow model by its layers."""
    depths = figures["depth"].values()
    layers = [int(name.split()[0]) for name in figures["depth"]]
    axes.plot(layers, [depth["compile_seconds"] for depth in depths], marker="o", color=OTHER, label="to compile")
    axes.plot(layers, [depth["step_seconds"] for depth in depths], marker="o", color=OURS, label="a step")
    axes.set(yscale="log")
    _label(axes, "Depth, at d_model 64", "layers", "seconds")
    axes.legend(fontsize=8)


def draw_devices(axes: Any, figures: dict[str, Any]) -> None:
    """The sharded step by its devices."""
    counts = [int(name.split()[0]) for name in figures["devices"]]
    for key, name, colour in (("cpu_seconds", "CPU-seconds", OTHER), ("seconds", "seconds", OURS)):
        axes.plot(counts, [one[key] for one in figures["devices"].values()], marker="o", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, map(str, counts))
    _label(axes, "Sharded step (fsdp), the same batch", "simulated devices", "seconds of a step")
    axes.legend(fontsize=8)


def draw_packing(axes: Any, figures: dict[str, Any]) -> None:
    """Packed rows beside padded ones."""
    _bars(axes, figures["packing"], "tokens_per_cpu_second", (OURS, OTHER))
    _label(axes, "Ragged examples in rows", "", "tokens per CPU-second")


def draw_reference(axes: Any, figures: dict[str, Any]) -> None:
    """Reference log-probs from the batch beside those of a second model."""
    _bars(axes, figures["reference"], "tokens_per_cpu_second", (OURS, OTHER))
    _label(axes, "Reference log-probs in a step", "", "tokens per CPU-second")


def draw_variants(axes: Any, figures: dict[str, Any]) -> None:
    """The head's variants at the vocabulary of the step."""
    colours = [OTHER if name.startswith("dense") else OURS for name in figures["head"]]
    _bars(axes, figures["head"], "cpu_seconds", colours)
    axes.tick_params("x", labelrotation=30)
    _label(axes, f"Log-prob head, vocabulary {figures['size']['vocab']:,}", "", "CPU-seconds, with gradients")


def draw_vocab_seconds(axes: Any, figures: dict[str, Any]) -> None:
    """The blocked head's time over vocabularies."""
    sizes = list(figures["vocabularies"].values())
    for key, name, colour in (("cpu_seconds", "CPU-seconds", OTHER), ("seconds", "seconds", OURS)):
        vocab, spent = _columns(sizes, "vocab", key)
        axes.plot(vocab / 1000, spent, marker="o", color=colour, label=name)
    _label(axes, f"Blocked head, {_batch_tokens(figures)} tokens: time", VOCABULARY, "seconds, with gradients")
    axes.legend(fontsize=8)


def draw_vocab_bytes(axes: Any, figures: dict[str, Any]) -> None:
    """The blocked head's memory over vocabularies, beside one array of logits."""
    sizes = list(figures["vocabularies"].values())
    lines = (("logits_bytes", "all logits, float32", OTHER), ("temp_bytes", "blocked head", OURS))
    for key, name, colour in lines:
        vocab, size = _columns(sizes, "vocab", key)
        axes.plot(vocab / 1000, size / 2**20, marker="o", color=colour, label=name)
    _label(axes, f"Blocked head, {_batch_tokens(figures)} tokens: memory", VOCABULARY, "MiB of temporaries")
    axes.legend(fontsize=8)


def _bars(axes: Any, variants: dict[str, dict[str, float]], key: str, colours: Any) -> None:
    """One bar a variant, its value above it."""
    bars = axes.bar(list(variants), [figures[key] for figures in variants.values()], color=colours)
    axes.margins(y=0.1)  # room for the values
    axes.bar_label(bars, fmt="{:,.3g}", fontsize=8)


def _columns(rows: list[dict[str, float]], *keys: str) -> tuple[np.ndarray, ...]:
    return tuple(np.array([row[key] for row in rows]) for key in keys)


def _label(axes: Any, title: str, x: str, y: str) -> None:
    """Titles and units; axes that are not logarithmic begin at 0, and have thousands separated."""
    axes.set(title=title, xlabel=x, ylabel=y)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    if x in (VOCABULARY, TOKENS):
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")


def _batch_tokens(figures: dict[str, Any]) -> str:
    return f"{figures['size']['rows'] * figures['size']['seq']:,}"


if __name__ == "__main__":
    source = Path(sys.argv[1] if sys.argv[1:] else "runs/bench.json")
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
