"""How a run is doing, from its files: for the terminal, or as JSON."""

import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

from rdro_jax.report.runs import Run, load_runs
from rdro_jax.run_files import CONFIG_FILE, HOLDER_FILE, METRICS_FILE


class Status(NamedTuple):
    """How a run is doing."""

    run: str
    state: str
    """`finished`, `running` (a process holds the folder) or `stopped`."""
    holder: str | None
    """The process that holds the folder, or held it when it was killed, as it wrote itself down."""
    step: int
    written: float
    """Seconds since metrics.jsonl was last written to, or config.yaml where there is none yet."""
    skipped_steps: int
    metrics: dict[str, float]
    """The last value of every metric."""


def read_status(folder: Path) -> Status:
    """The state of the run in `folder`. Raises: ConfigError where it holds none."""
    (run,) = load_runs([folder])
    holder = folder / HOLDER_FILE
    newest = next(path for name in (METRICS_FILE, CONFIG_FILE) if (path := folder / name).exists())
    held = holder.read_text(encoding="utf-8").strip() if holder.is_file() else None
    return Status(
        run=str(folder),
        state="finished" if run.finished else "running" if held and not _gone(held) else "stopped",
        holder=held,
        step=run.last_step(),
        written=max(0.0, time.time() - newest.stat().st_mtime),
        skipped_steps=run.skipped_steps(),
        metrics=_latest(run),
    )


def _gone(holder: str) -> bool:
    """Whether the process was one of this machine and is no more."""
    number, _, machine = holder.removeprefix("process ").partition(" on ")
    if machine != platform.node() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _latest(run: Run) -> dict[str, float]:
    known = ((key, run.latest(key)) for key in run.series)
    return {key: value for key, value in known if value is not None}


def status_table(status: Status) -> Any:
    """The status as a rich table."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", show_header=False, title=Text(f"{status.run}: {status.state}"))
    table.add_row("step", str(status.step))
    table.add_row("last line", f"{status.written:.0f} s ago")
    if status.holder and status.state == "running":
        table.add_row("held by", Text(status.holder))
    table.add_row("skipped steps", str(status.skipped_steps))
    for key, value in sorted(status.metrics.items()):
        if key != "skipped_steps":
            table.add_row(Text(key), f"{value:.6g}")
    return table
