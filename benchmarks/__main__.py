"""`python -m benchmarks [OUT.json]`: tables on the terminal, the figures in a file, a picture of them beside it."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoint import bench_checkpoint
from benchmarks.depth import bench_depth
from benchmarks.devices import bench_devices
from benchmarks.figure import draw
from benchmarks.head import bench_head, bench_vocabularies
from benchmarks.reference import bench_reference
from benchmarks.sizes import Size
from benchmarks.step import bench_packing, bench_peak
from benchmarks.tokens import bench_tokens, fit_tokens

OUT = Path("runs/bench.json")


def measure(size: Size) -> dict[str, Any]:
    """Every figure of every benchmark, and what it was measured on."""
    shapes = bench_tokens(size)
    return {
        "machine": {"cpus": os.cpu_count(), "device": jax.devices()[0].device_kind, "jax": jax.__version__},
        "size": dataclasses.asdict(size),
        "head": bench_head(size),
        "vocabularies": bench_vocabularies(size),
        "packing": bench_packing(size),
        "step": {"full rows": bench_peak(size)},
        "reference": bench_reference(size),
        "shapes": shapes,
        "tokens": {"fit": fit_tokens(shapes)},
        "checkpoint": {"state of the step": bench_checkpoint(size)},
        "depth": bench_depth(size),
        "devices": bench_devices(size),
    }


def table(title: str, variants: dict[str, dict[str, float]]) -> Table:
    """Figures by variants."""
    result = Table("", *variants, title=title, title_justify="left")
    for figure in next(iter(variants.values())):
        values = [figures[figure] for figures in variants.values()]
        result.add_row(figure, *(f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" for value in values))
    return result


def main(out: Path = OUT, size: Size = Size()) -> None:  # noqa: B008 (frozen)
    """Measure, print, write."""
    figures = measure(size)
    console = Console()
    for name, variants in figures.items():
        if name not in ("machine", "size"):
            console.print(table(f"{name} (medians of up to {size.repeats})", variants))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(out, draw(figures, out.with_suffix(".png")), style="dim")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
