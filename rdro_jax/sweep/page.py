"""report.html of a sweep: one file that opens from disk and asks nobody for anything."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rdro_jax.sweep.files import PAGE_FILE
from rdro_jax.sweep.results import best_row
from rdro_jax.sweep.runs import runs_of
from rdro_jax.sweep.space import LOSS_NAME
from rdro_jax.sweep.spec import LoadedSweep

MOST_POINTS = 200
"""Of one curve; longer ones are thinned."""
HERE = Path(__file__).parent


def write_page(loaded: LoadedSweep, rows: list[dict[str, Any]], importance: dict[str, float]) -> Path:
    """Write the page: groups with confidence intervals, parallel coordinates, importance, curves, a table.

    Every string reaches the page as text: through Jinja's escaping, or as JSON that its script gives to `textContent`.
    """
    script = (HERE / "page.js").read_text()
    template = Environment(autoescape=True).from_string((HERE / "page.html").read_text())
    data = json.dumps(page_data(loaded, rows, importance), allow_nan=False)
    for character in "<>&\u2028\u2029":  # no string of the data can end the element it stands in
        data = data.replace(character, f"\\u{ord(character):04x}")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    path = loaded.folder / PAGE_FILE
    unfinished = path.with_suffix(".tmp")
    page = template.render(title=str(loaded.folder), script=script, digest=digest, data=data)
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def page_data(loaded: LoadedSweep, rows: list[dict[str, Any]], importance: dict[str, float]) -> dict[str, Any]:
    """What the page shows, as JSON."""
    objective = loaded.sweep.objective
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    best = best_row(loaded, rows)
    pruner = loaded.sweep.pruner
    pruned_by = [pruner.metric] if pruner is not None and pruner.metric is not None else []
    metrics = list(dict.fromkeys([objective.metric, *pruned_by, "loss"]))
    return {
        "metric": objective.metric,
        "direction": objective.direction,
        "keys": keys,
        "group": group_key(rows),
        "seeds": list(loaded.sweep.seeds),
        "best": best and best["trial"],
        "importance": importance,
        "trials": rows,
        "metrics": metrics,
        "curves": [_curves(loaded, row, metrics) for row in rows],
    }


def group_key(rows: list[dict[str, Any]]) -> str | None:
    """The key that trials are grouped by: the loss, else the first with few values; None where there is none."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row["point"].items():
            values.setdefault(key, set()).add(value)
    if LOSS_NAME in values:
        return LOSS_NAME
    return next((key for key, found in values.items() if 1 < len(found) <= 8), None)


def _curves(loaded: LoadedSweep, row: dict[str, Any], metrics: list[str]) -> dict[str, list[Any]]:
    """Metric -> the curve of each of the trial's runs."""
    runs = runs_of(loaded, row["trial"], row["point"])
    return {metric: [_thinned(run.curve(metric)) for run in runs] for metric in metrics}


def _thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    stride = -(-len(curve) // MOST_POINTS) or 1
    return curve[::-1][::stride][::-1]  # the last point stays
