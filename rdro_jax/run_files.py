"""What a run leaves in its folder, by name; read without jax, by those who only look."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE, ENVIRONMENT_FILE, DATA_REPORT_FILE = "config.yaml", "environment.json", "data_report.json"
LOSS_FILE = "loss.json"
"""The loss with what it took from the data filled in, its floor and its bound."""
ALPHA_FILE = "alpha.json"
"""alpha as estimated before the first step, with its interval."""
METRICS_FILE = "metrics.jsonl"
"""The truth about a run: a line per logging window, and one per evaluation with its figures under `eval_`."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""What an evaluation says beside its figures: histograms of the log-ratio, the reliability curve; a line each."""
RESULT_FILE = "result.json"
"""The final metrics; the file says that the run is finished."""
SAMPLES_FILE = "samples.jsonl"
"""Completions to look at."""
LOCK_FILE, HOLDER_FILE = ".lock", ".lock_holder"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file; a torn last line is passed over."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def dotted(tree: Mapping[str, Any], prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Leaves of nested sections by dotted key, an empty section being a leaf; with `lists`, of lists of sections too.

    >>> dotted({"loss": {"name": "rdro"}, "data": {"train": [{"path": "a"}]}})
    {'loss.name': 'rdro', 'data.train': [{'path': 'a'}]}
    >>> dotted({"data": {"train": [{"path": "a"}]}}, lists=True)
    {'data.train.0.path': 'a'}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if lists and isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        key = f"{prefix}{name}"
        flat |= dotted(value, f"{key}.", lists=lists) if isinstance(value, Mapping) and value else {key: value}
    return flat
