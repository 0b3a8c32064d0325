"""One run of a sweep: a point, a seed, a folder; what its files say of it."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from rdro_jax.run_files import METRICS_FILE, RESULT_FILE, read_metrics
from rdro_jax.sweep.space import Point
from rdro_jax.sweep.spec import LoadedSweep

LOG_FILE = "log.txt"


class Run(NamedTuple):
    """A `rdro train` of a sweep."""

    number: int
    """Of its trial's folder."""
    seed: int | None
    """Value of `seed` where the sweep has seeds."""
    folder: Path
    """Its `output_dir`."""
    words: tuple[str, ...]
    """Arguments of `rdro` that start it or go on with it."""

    @property
    def name(self) -> str:
        """What people call it: `0003`, or `0003/seed-1`."""
        return f"{self.number:04d}" + ("" if self.seed is None else f"/seed-{self.seed}")

    def result(self) -> dict[str, Any] | None:
        """Its final metrics; None while it is not finished."""
        file = self.folder / RESULT_FILE
        return json.loads(file.read_text()) if file.exists() else None

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(optimizer step, value) of a metric, as far as it is logged."""
        file = self.folder / METRICS_FILE
        lines = read_metrics(file) if file.exists() else ()
        return [(line["step"], line[metric]) for line in lines if is_finite(line.get(metric))]

    def has_begun(self) -> bool:
        """Whether its first step is logged: data and reference log-probs are there for others to use."""
        file = self.folder / METRICS_FILE
        return file.exists() and file.stat().st_size > 0

    def last_words(self) -> str:
        """The line of its log that says why it failed."""
        file = self.folder / LOG_FILE
        lines = file.read_text(errors="replace").split("\n") if file.exists() else []
        told = [line for line in lines if line.startswith("rdro: error: ")] or [line for line in lines if line.strip()]
        return told[-1].removeprefix("rdro: error: ") if told else "it said nothing"


def runs_of(loaded: LoadedSweep, number: int, point: Point) -> list[Run]:
    """The runs of a trial: one, or one per seed."""
    home = loaded.folder / "trials" / f"{number:04d}"
    runs = []
    for seed in loaded.sweep.seeds or (None,):
        folder = home if seed is None else home / f"seed-{seed}"
        own = point if seed is None else point | {"seed": seed}
        words = ("train", str(loaded.config_file(point)), *loaded.overrides(own, folder))
        runs.append(Run(number, seed, folder, words))
    return runs


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a metric is a number that can be compared."""
    return isinstance(value, (int, float)) and math.isfinite(value)
