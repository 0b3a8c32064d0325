"""Checkpoints of a run: `checkpoint-N/` folders written by orbax, asynchronously and atomically.

Parameters and optimizer state are separate items, so that the parameters can be restored alone; what is not an array
(data position, config) travels as the checkpoint's own metadata.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from orbax.checkpoint import v1 as ocp
from pydantic import Field, PositiveInt

from rdro_jax.errors import CheckpointError, StorageError


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved and how many states are kept."""

    save_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; None saves at the end only."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept; at least 2, so that a damaged one never is the only one."""


class CheckpointWriter:
    """Saves in the background, one checkpoint at a time; a failed save raises at the next call, never later."""

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        self._run_dir = run_dir
        self._keep = config.save_total_limit
        self._pending: ocp.AsyncResponse | None = None
        logging.getLogger("absl").addFilter(_is_news)

    def save(self, step: int, items: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start writing `checkpoint-{step}`; waits for the previous one first."""
        self.wait()
        self._pending = ocp.save_checkpointables_async(
            str(checkpoint_path(self._run_dir, step)), items, custom_metadata=meta
        )

    def wait(self) -> None:
        """Wait for the save under way, then drop what is beyond the limit. Raises `StorageError` if it failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            # tensorstore reports a full disk as a ValueError, in several lines.
            if not isinstance(error, OSError) and "os_error_code" not in str(error):
                raise
            reason = " ".join(str(error).split())[:300]
            raise StorageError(
                f"{self._run_dir}: checkpoint not saved ({reason}); free space and start again"
            ) from error
        for step in list_steps(self._run_dir)[: -self._keep]:
            shutil.rmtree(checkpoint_path(self._run_dir, step))


def _is_news(record: logging.LogRecord) -> bool:
    """False for the tracebacks that orbax' threads log of a failed save: `wait` raises the failure in one line."""
    return "_SignalingThread.run() raised an exception" not in record.getMessage()


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run_dir.absolute() / f"checkpoint-{step}"


def list_steps(run_dir: Path) -> list[int]:
    """Steps whose checkpoint is complete, oldest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run_dir.glob("checkpoint-*"))
    steps = sorted(int(match[1]) for match in found if match)
    # Orbax renames a folder into place when it is whole: a half-written one has another name, an empty one is not ours.
    return [step for step in steps if (checkpoint_path(run_dir, step) / "params").is_dir()]


def load_meta(run_dir: Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays."""
    meta = ocp.checkpointables_metadata(str(checkpoint_path(run_dir, step))).custom_metadata
    if not isinstance(meta, dict):
        raise CheckpointError(f"{checkpoint_path(run_dir, step)}: no metadata; not a checkpoint of rdro train")
    return meta  # pyright: ignore[reportReturnType]  # saved by us: keys are str


def load_items(run_dir: Path, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Arrays of the named items, placed as `abstract` (shapes, dtypes and shardings) says.

    Raises `CheckpointError` where the checkpoint holds other shapes or leaves.
    """
    path = checkpoint_path(run_dir, step)
    try:
        return ocp.load_checkpointables(str(path), abstract)
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: cannot be restored ({reason}); remove it to use an older one") from error
