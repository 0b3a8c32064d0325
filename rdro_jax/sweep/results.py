"""What a sweep found: results.jsonl and results.csv, the best config as YAML."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rdro_jax.sweep.files import BEST_FILE, RESULTS_FILE, SUMMARY_FILE, TABLE_FILE
from rdro_jax.sweep.journal import Journal, folder_number
from rdro_jax.sweep.runs import runs_of
from rdro_jax.sweep.spec import LoadedSweep


def summarise(values: list[float]) -> tuple[float, float | None]:
    """Mean over seeds, and half the width of its 95 % confidence interval by Student's t; None for one value.

    >>> mean, half = summarise([1.0, 2.0, 3.0])
    >>> print(f"{mean:.1f} +- {half:.2f}")  # t of 2 degrees of freedom is 4.303, the standard error 1 / sqrt(3)
    2.0 +- 2.48
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    return mean, float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def read_trials(loaded: LoadedSweep, journal: Journal) -> list[dict[str, Any]]:
    """One row per trial: its point, how it ended, its value, where its runs are."""
    rows = []
    for trial in journal.trials():
        point = journal.point(trial)
        runs = runs_of(loaded, folder_number(trial), point)
        facts = trial.user_attrs
        rows.append(
            {
                "trial": folder_number(trial),
                "state": trial.state.name.lower(),
                "point": point,
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "ci95": facts.get("ci95"),
                "values": facts.get("values"),
                "seconds": facts.get("seconds"),
                "why": facts.get("why"),
                "runs": [str(run.folder) for run in runs],
            }
        )
    return rows


def best_row(loaded: LoadedSweep, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The finished trial with the best value."""
    finished = [row for row in rows if row["value"] is not None]
    sign = -1 if loaded.sweep.objective.direction == "maximize" else 1
    return min(finished, key=lambda row: sign * row["value"], default=None)


def write_results(loaded: LoadedSweep, rows: list[dict[str, Any]]) -> None:
    """Write results.jsonl, results.csv, summary.json and best.yaml anew, each in one move."""
    best, objective = best_row(loaded, rows), loaded.sweep.objective
    summary = {"metric": objective.metric, "direction": objective.direction, "planned": loaded.planned}
    _write(loaded.folder / RESULTS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    _write(loaded.folder / TABLE_FILE, _table(rows))
    _write(loaded.folder / SUMMARY_FILE, json.dumps(summary | {"best": best and best["trial"]}))
    if best is not None:
        _write(loaded.folder / BEST_FILE, _best_config(loaded, best))


def _table(rows: list[dict[str, Any]]) -> str:
    """CSV: a column for every key of the space."""
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", *keys, "value", "ci95", "seconds", "why"])
    for row in rows:
        cells = [row["point"].get(key) for key in keys]
        table.writerow([row["trial"], row["state"], *cells, row["value"], row["ci95"], row["seconds"], row["why"]])
    return text.getvalue()


def _best_config(loaded: LoadedSweep, row: dict[str, Any]) -> str:
    """The best trial's config, ready for `rdro train`, in a folder of its own."""
    objective = loaded.sweep.objective
    spread = "" if row["ci95"] is None else f" +- {row['ci95']:.3g} (95 %, {len(row['values'])} seeds)"
    config = loaded.config(row["point"], loaded.folder / "best")
    return (
        f"# Trial {row['trial']:04d} of {loaded.folder}: {objective.metric} {row['value']:.6g}{spread}.\n"
        f"# Command: rdro train {loaded.folder / BEST_FILE}\n{config.to_yaml()}"
    )


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
