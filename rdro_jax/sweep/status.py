"""What a sweep is doing, as a table for the terminal; reads what its coordinator wrote, without jax and Optuna."""

import json
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rdro_jax.errors import ConfigError
from rdro_jax.run_files import METRICS_FILE, read_metrics
from rdro_jax.sweep.files import RESULTS_FILE, SUMMARY_FILE

REFRESH_SECONDS = 2.0
ENDED = ("complete", "pruned", "fail")


def show_status(file: str | Path) -> None:
    """Print the table; on a terminal it is kept up to date until the sweep is done or Ctrl-C.

    Raises: ConfigError where the sweep was never started.
    """
    folder = _folder_of(Path(file))
    if not (folder / SUMMARY_FILE).exists():
        raise ConfigError(f"{folder}: no sweep was started here; 'rdro sweep {file}' does")
    console = Console()
    table, left = _look(folder)
    if not console.is_terminal:
        console.print(table)
        return
    with Live(table, console=console) as live:
        while left:
            time.sleep(REFRESH_SECONDS)
            table, left = _look(folder)
            live.update(table)


def _folder_of(file: Path) -> Path:
    """`output_dir` of a sweep file, which is checked when the sweep is run. Raises: ConfigError."""
    try:
        return Path(yaml.safe_load(file.read_text(encoding="utf-8"))["output_dir"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        raise ConfigError(f"{file}: wanted a sweep file, a YAML file with output_dir") from None


def _look(folder: Path) -> tuple[Table, int]:
    """The table, and how many trials have not ended."""
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    rows = [json.loads(line) for line in (folder / RESULTS_FILE).read_text().splitlines()]
    ended = sum(row["state"] in ENDED for row in rows)
    title = f"{folder}: {ended} of {summary['planned']} trials ended"
    return make_table(title, summary, rows), summary["planned"] - ended


def make_table(title: str, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    """One line per trial, the best one marked, with the newest step of those under way."""
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    table = Table(title=escape(title))
    for name in ("trial", "state", *keys, summary["metric"], "seconds"):
        table.add_column(name, justify="left" if name in ("state", *keys) else "right")
    for row in rows:
        point = [_spell(row["point"].get(key)) for key in keys]
        value = _progress(row) if row["value"] is None else _figure(row)
        colour = {"fail": "red", "pruned": "dim"}.get(row["state"])
        style = "bold green" if row["trial"] == summary["best"] else colour
        table.add_row(f"{row['trial']:04d}", row["state"], *point, value, _spell(row["seconds"]), style=style)
    return table


def _figure(row: dict[str, Any]) -> str:
    return f"{row['value']:.5g}" + ("" if row["ci95"] is None else f" ± {row['ci95']:.2g}")


def _progress(row: dict[str, Any]) -> str:
    """Newest steps of the runs under way, or why the trial failed."""
    if row["state"] in ENDED:
        return escape(row["why"] or "")
    files = [Path(folder) / METRICS_FILE for folder in row["runs"]]
    steps = [[line["step"] for line in read_metrics(file)] for file in files if file.exists()]
    return f"at step {', '.join(str(found[-1]) for found in steps if found)}" if any(steps) else ""


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
