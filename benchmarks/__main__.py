"""`python -m benchmarks [OUT.json]`: tables on the terminal, the figures in a file."""

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
from benchmarks.head import bench_head
from benchmarks.sizes import Size
from benchmarks.step import bench_packing, bench_peak
from benchmarks.tokens import bench_tokens

OUT = Path("runs/bench.json")


def measure(size: Size) -> dict[str, Any]:
    """Every figure of every benchmark, and what it was measured on."""
    return {
        "machine": {"cpus": os.cpu_count(), "device": jax.devices()[0].device_kind, "jax": jax.__version__},
        "size": dataclasses.asdict(size),
        "head": bench_head(size),
        "packing": bench_packing(size),
        "step": {"full rows": bench_peak(size)},
        "tokens": bench_tokens(size),
        "checkpoint": {"state of the step": bench_checkpoint(size)},
        "depth": bench_depth(size),
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
    for name in ("head", "packing", "step", "tokens", "checkpoint", "depth"):
        console.print(table(f"{name} (medians of {size.repeats})", figures[name]))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(out, style="dim")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
