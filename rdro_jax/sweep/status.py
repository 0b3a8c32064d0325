"""What a sweep is doing, as a table for the terminal; reads the folder only, whoever holds it."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rdro_jax.errors import ConfigError
from rdro_jax.sweep.journal import JOURNAL_FILE, Journal, planned
from rdro_jax.sweep.results import best_row, read_trials
from rdro_jax.sweep.runs import Run
from rdro_jax.sweep.spec import LoadedSweep, load_sweep

REFRESH_SECONDS = 2.0
ENDED = ("complete", "pruned", "fail")


def show_status(file: str | Path) -> None:
    """Print the table; on a terminal it is kept up to date until the sweep is done or Ctrl-C.

    Raises: ConfigError where the sweep was never started.
    """
    loaded = load_sweep(file)
    if not (loaded.folder / JOURNAL_FILE).exists():
        raise ConfigError(f"{loaded.folder}: no sweep was started here; 'rdro sweep {file}' does")
    console = Console()
    rows = _rows(loaded)
    if not console.is_terminal:
        console.print(make_table(loaded, rows))
        return
    with Live(make_table(loaded, rows), console=console) as live:
        while sum(row["state"] in ENDED for row in rows) < planned(loaded):
            time.sleep(REFRESH_SECONDS)
            rows = _rows(loaded)
            live.update(make_table(loaded, rows))


def _rows(loaded: LoadedSweep) -> list[dict[str, Any]]:
    return read_trials(loaded, Journal(loaded, read_only=True))


def make_table(loaded: LoadedSweep, rows: list[dict[str, Any]]) -> Table:
    """One line per trial, the best one marked, with the newest step of those under way."""
    metric, best = loaded.sweep.objective.metric, best_row(loaded, rows)
    ended = sum(row["state"] in ENDED for row in rows)
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    table = Table(title=f"{loaded.folder}: {ended} of {planned(loaded)} trials ended")
    for title in ("trial", "state", *keys, metric, "seconds"):
        table.add_column(title, justify="left" if title in ("state", *keys) else "right")
    for row in rows:
        point = [_spell(row["point"].get(key)) for key in keys]
        value = _progress(row) if row["value"] is None else _figure(row)
        style = "bold green" if row is best else {"fail": "red", "pruned": "dim"}.get(row["state"])
        table.add_row(f"{row['trial']:04d}", row["state"], *point, value, _spell(row["seconds"]), style=style)
    return table


def _figure(row: dict[str, Any]) -> str:
    return f"{row['value']:.5g}" + ("" if row["ci95"] is None else f" +- {row['ci95']:.2g}")


def _progress(row: dict[str, Any]) -> str:
    """Newest steps of the runs under way, or why the trial failed."""
    if row["state"] in ENDED:
        return row["why"] or ""
    curves = [Run(row["trial"], None, Path(folder), ()).curve("loss") for folder in row["runs"]]
    steps = [curve[-1][0] for curve in curves if curve]
    return f"at step {', '.join(map(str, steps))}" if steps else ""


def _spell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
