"""What a study leaves: checks with the wanted figure beside the measured one, as a table, a JSON file and a plot."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from rdro_jax.errors import ConfigError, StorageError

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class Check:
    """A measured figure between two bounds, both excluded. Without bounds it is only told."""

    what: str
    """The figure, in words."""
    measured: float
    above: float | None = None
    below: float | None = None

    @property
    def passed(self) -> bool:
        """True within the bounds; NaN is within none."""
        if self.above is None and self.below is None:
            return True
        return (self.above is None or self.measured > self.above) and (self.below is None or self.measured < self.below)

    @property
    def wanted(self) -> str:
        """The bounds, in words."""
        match self.above, self.below:
            case None, None:
                return ""
            case above, None:
                return f"> {above:g}"
            case None, below:
                return f"< {below:g}"
            case above, below:
                return f"{above:g} to {below:g}"


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One plot of a picture."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"


@dataclass(frozen=True)
class StudyReport:
    """What a study found."""

    name: str
    claim: str
    """What is shown if every check passes, in a sentence."""
    setting: str
    """What was done, in a sentence."""
    checks: tuple[Check, ...]
    panels: tuple[Panel, ...]

    @property
    def missed(self) -> tuple[Check, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


@dataclass(frozen=True)
class Options:
    """How much work a study does, and on what."""

    seeds: int = 5
    """Independent repetitions; a study may draw several worlds for each."""
    fast: bool = False
    """Leaves out what takes long; what is left is held to the same figures."""
    losses: tuple[str, ...] = ()
    """Losses to compare in `consistency`; () is all it knows."""


def table(report: StudyReport) -> Table:
    """The checks of a study for the terminal."""
    drawn = Table("figure", "measured", "wanted", "", title=f"{report.name}: {report.claim}", title_justify="left")
    for check in report.checks:
        verdict = "" if not check.wanted else "pass" if check.passed else "[bold red]MISSED[/]"
        drawn.add_row(check.what, f"{check.measured:.4g}", check.wanted, verdict)
    return drawn


def to_json(report: StudyReport) -> str:
    """A study as a JSON object; a figure that is not finite is null."""
    checks = [dataclasses.asdict(check) | {"passed": check.passed} for check in report.checks]
    return json.dumps(_finite(dataclasses.asdict(report) | {"checks": checks}), indent=2)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(part) for key, part in value.items()}
        case list() | tuple() | np.ndarray():
            return [_finite(part) for part in value]
        case bool() | str() | None:
            return value
        case int() | np.integer():
            return int(value)
    return float(value) if math.isfinite(value) else None


def write(report: StudyReport, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.json` and `NAME.png` into a folder. Raises: StorageError, ConfigError without matplotlib."""
    files = folder / f"{report.name}.json", folder / f"{report.name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_text(to_json(report) + "\n")
        draw(report, files[1])
    except OSError as error:
        raise StorageError(f"--out: {folder}: {error.strerror}; wanted a folder that can be written") from error
    return files


def require_matplotlib() -> None:
    """Raises: ConfigError where the plots cannot be drawn; asked before a study takes its minutes."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("the plots of studies need matplotlib: pip install 'rdro_jax[report]'") from None


def draw(report: StudyReport, path: Path) -> None:
    """A PNG of the panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(report.panels), 4.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(report.panels), squeeze=False)[0], report.panels, strict=True):
        for curve in panel.curves:
            axes.plot(curve.x, curve.y, marker=".", label=curve.label)
        axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        axes.set(xscale=panel.x_scale, yscale=panel.y_scale)
        axes.legend(fontsize=8)
    figure.suptitle(report.claim, fontsize=10, wrap=True)
    figure.savefig(path, dpi=110)
