"""The files of a run folder -> what a report shows of it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float64

from rdro_jax.errors import CheckpointError, ConfigError
from rdro_jax.run_files import (
    CONFIG_FILE,
    DATA_REPORT_FILE,
    ENVIRONMENT_FILE,
    EVALUATIONS_FILE,
    LOSS_FILE,
    METRICS_FILE,
    RESULT_FILE,
    SAMPLES_FILE,
    dotted,
    read_lines,
)

NUMBERS = (int, float)
"""What JSON has for numbers: its truth values, which Python counts among them, are of another type."""


class Series(NamedTuple):
    """One metric over the steps at which it was written."""

    steps: Float64[np.ndarray, "points"]
    values: Float64[np.ndarray, "points"]
    """NaN where the metric was null."""


class Run(NamedTuple):
    """What a run left."""

    name: str
    path: Path
    series: Mapping[str, Series]
    evaluations: Sequence[Mapping[str, Any]]
    """Lines of evaluations.jsonl."""
    config: Mapping[str, Any]
    """By dotted key, like the three that follow."""
    loss: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    """Lines of samples.jsonl."""
    finished: bool

    def latest(self, key: str) -> float | None:
        """The last number under `key`; None where there is none."""
        values = self.series[key].values if key in self.series else np.array([])
        known = values[np.isfinite(values)]
        return float(known[-1]) if len(known) else None

    def skipped_steps(self) -> int:
        """Steps whose gradient was not finite."""
        return int(np.nansum(self.series["skipped_steps"].values)) if "skipped_steps" in self.series else 0

    def last_step(self) -> int:
        """The newest step that was written of; 0 before the first."""
        return int(max((series.steps[-1] for series in self.series.values()), default=0))


def load_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """The runs in `folders`, named as shortly as tells them apart. Raises: ConfigError, CheckpointError."""
    return tuple(_load_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True))


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as make the names differ; the same folder twice is refused."""
    paths = [folder.resolve() for folder in folders]
    repeated = next((folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1), None)
    if repeated is not None:
        raise ConfigError(f"{repeated}: named twice; a comparison is of different runs")
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len({*names}) == len(names):
            return names
    return [str(path) for path in paths]


def _load_run(folder: Path, name: str) -> Run:
    lines = _lines(folder / METRICS_FILE)
    if lines is None and not (folder / CONFIG_FILE).exists():  # with it, a run that has not yet logged a step
        raise ConfigError(f"{folder}: no {METRICS_FILE} in it; wanted the output_dir of a run, or of several")
    return Run(
        name=name,
        path=folder,
        series=gather(lines or ()),
        evaluations=_lines(folder / EVALUATIONS_FILE) or (),
        config=dotted(_mapping(folder / CONFIG_FILE), lists=True),
        loss=dotted(_mapping(folder / LOSS_FILE), lists=True),
        data=dotted(_mapping(folder / DATA_REPORT_FILE), lists=True),
        environment=dotted(_mapping(folder / ENVIRONMENT_FILE), lists=True),
        samples=_lines(folder / SAMPLES_FILE) or (),
        finished=(folder / RESULT_FILE).exists(),
    )


def gather(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Every metric of the lines that is ever a number, over its steps."""
    columns: dict[str, tuple[list[Any], list[Any]]] = {}
    for line in lines:
        if type(step := line.get("step")) in NUMBERS:
            for key, value in line.items():
                if key in columns:  # before a call that makes lists for nothing
                    steps, values = columns[key]
                else:
                    steps, values = columns[key] = [], []
                steps.append(step)
                values.append(value)
    series = {key: _as_series(*column) for key, column in columns.items() if key != "step"}
    return {key: one for key, one in series.items() if not np.isnan(one.values).all()}


def _as_series(steps: list[float], values: list[Any]) -> Series:
    """What of the values is a number or null; types are told once a column, as a run writes them: one."""
    if not {*map(type, values)} <= {*NUMBERS, type(None)}:
        known = [
            (step, value) for step, value in zip(steps, values, strict=True) if value is None or type(value) in NUMBERS
        ]
        steps, values = [step for step, _ in known], [value for _, value in known]
    return Series(np.array(steps, float), np.array(values, float))


def _lines(path: Path) -> Sequence[Mapping[str, Any]] | None:
    """JSON objects of a file, one a line; None where there is no such file."""
    return [*read_lines(path)] if _readable(path) else None


def _mapping(path: Path) -> Mapping[str, Any]:
    """What a JSON or YAML file says; nothing where there is no such file."""
    if not _readable(path):
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({next(iter(str(error).splitlines()), '')})") from error
    return value if isinstance(value, dict) else {}


def _readable(path: Path) -> bool:
    if path.exists() and not os.access(path, os.R_OK):
        raise ConfigError(f"{path}: cannot be read; wanted a file that this user may read")
    return path.is_file()
