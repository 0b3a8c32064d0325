"""Checkpoints of a run: `checkpoint-N/` folders written by orbax, asynchronously and atomically, each with a manifest.

Parameters, optimizer state and what else a state holds are separate items, so that the parameters can be restored
alone; what is not an array (config) travels as the checkpoint's own metadata. Orbax restores a flipped bit in array
data without a word: the manifest, `checkpoint-N.manifest.json`, has the size and the hash of every file, and a
checkpoint counts once its manifest is there.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import xxhash
from orbax.checkpoint import v1 as ocp
from pydantic import Field, PositiveInt

from rdro_jax.errors import CheckpointError, StorageError
from rdro_jax.parallel import is_first, path_name

HASH_BLOCK = 1 << 24
"""Bytes read at once for a hash."""


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the state is saved, how many states are kept, and how often the policy is exported on the way."""

    save_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; None saves at the end only."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept; at least 2, so that a damaged one never is the only one."""
    export_steps: PositiveInt | None = None
    """Optimizer steps between exports of the policy, to `exports/step_000100` in the run folder; None exports at the
    end only."""
    metric_for_best_model: str | None = None
    """Held-out metric, such as eval_loss, whose best checkpoint is kept beside the newest; null keeps no other. The
    checkpoints of steps with an evaluation compete."""
    greater_is_better: bool = False
    """Whether more of that metric is better."""
    mirror: str | None = None
    """URL of a folder in an object store (gs://, s3://, any scheme of fsspec whose package is installed) that gets a
    copy of every checkpoint and of the metrics; a run folder without them goes on from there. Null keeps no copy."""


class CheckpointWriter:
    """Saves in the background, one checkpoint at a time; a failed save raises at the next call, never later."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, copy: Callable[[int], None] | None = None):
        """`copy` is given the step of each checkpoint that is complete, in the background, on the first process."""
        self._run_dir, self._copy = run_dir, copy
        self._config = config
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self.seconds = 0.0
        """What the last save took, from its begin to its manifest."""
        logging.getLogger("absl").addFilter(_is_news)
        if is_first():
            for unfinished in run_dir.glob("checkpoint-*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)

    def save(
        self, step: int, items: dict[str, Any], meta: dict[str, Any], metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Start writing `checkpoint-{step}`, the previous one having been waited for; `metrics` say how good it is.

        Raises: see `wait`.
        """
        self.wait()
        if is_first():
            _remove(self._run_dir, step)  # a damaged one that was passed over
        path = str(checkpoint_path(self._run_dir, step))
        written = ocp.save_checkpointables_async(path, items, custom_metadata=meta)
        self._pending = self._thread.submit(self._finish, step, written, metrics, time.monotonic())

    def _finish(
        self, step: int, written: ocp.AsyncResponse, metrics: Mapping[str, float | None] | None, begin: float
    ) -> None:
        """Wait for orbax, write the manifest, drop what is beyond the limit, copy what was made."""
        written.result()
        if not is_first():
            return
        write_manifest(self._run_dir, step, metrics)
        self.seconds = time.monotonic() - begin
        best = best_step(self._run_dir, self._config)
        for old in list_steps(self._run_dir)[: -self._config.save_total_limit]:
            if old != best:
                _remove(self._run_dir, old)
        if self._copy is not None:
            self._copy(step)

    def wait(self) -> None:
        """Wait for the save under way. Raises `StorageError` if it failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except Exception as error:
            # tensorstore reports a full disk as a ValueError, in several lines; orbax another process that is gone as a
            # TimeoutError, which is an OSError.
            if isinstance(error, TimeoutError) or not (isinstance(error, OSError) or "os_error_code" in str(error)):
                raise
            reason = " ".join(str(error).split())[:300]
            raise StorageError(
                f"{self._run_dir}: checkpoint not saved ({reason}); free space and start again"
            ) from error


def _is_news(record: logging.LogRecord) -> bool:
    """False for the tracebacks that orbax' threads log of a failed save: `wait` raises the failure in one line."""
    return "_SignalingThread.run() raised an exception" not in record.getMessage()


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return run_dir.absolute() / f"checkpoint-{step}"


def manifest_path(run_dir: Path, step: int) -> Path:
    """File with the sizes and hashes of a checkpoint's files."""
    return run_dir.absolute() / f"checkpoint-{step}.manifest.json"


def list_steps(run_dir: Path) -> list[int]:
    """Steps whose checkpoint is complete, oldest first: one that was being written has no manifest yet."""
    found = (manifest_step(path.name) for path in run_dir.glob("checkpoint-*"))
    return sorted(step for step in found if step is not None)


def manifest_step(name: str) -> int | None:
    """The step whose manifest has this file name; None for other files."""
    match = re.fullmatch(r"checkpoint-(\d+)\.manifest\.json", name)
    return int(match[1]) if match else None


def best_step(run_dir: Path, config: CheckpointConfig) -> int | None:
    """The step whose checkpoint is best by `metric_for_best_model`, the earliest of equal ones; None where none is."""
    told = {step: _read_manifest(run_dir, step).get("metrics") or {} for step in list_steps(run_dir)}
    known = {step: metrics.get(config.metric_for_best_model) for step, metrics in told.items()}
    known = {step: metric for step, metric in known.items() if metric is not None}
    return min(known, key=lambda step: -known[step] if config.greater_is_better else known[step], default=None)


def _read_manifest(run_dir: Path, step: int) -> dict[str, Any]:
    """The manifest of a step; empty where it cannot be read."""
    try:
        manifest = json.loads(manifest_path(run_dir, step).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def write_manifest(run_dir: Path, step: int, metrics: Mapping[str, float | None] | None = None) -> None:
    """Write sizes and hashes of the files of a checkpoint, and how good it is, in one move."""
    folder, manifest = checkpoint_path(run_dir, step), manifest_path(run_dir, step)
    files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in _files(folder)}
    unfinished = manifest.with_suffix(".tmp")
    with unfinished.open("w") as file:
        json.dump({"step": step, "metrics": metrics and dict(metrics), "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(manifest)


def find_fault(run_dir: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of a step, naming the file; None for one that is as it was written."""
    folder, manifest = checkpoint_path(run_dir, step), manifest_path(run_dir, step)
    wanted = _read_manifest(run_dir, step).get("files")
    if not isinstance(wanted, dict):
        return f"{manifest}: not readable"
    found = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name in wanted.keys() - found:
        return f"{folder / name}: missing"
    for name, fingerprint in wanted.items():
        if _fingerprint(folder / name) != fingerprint:
            return f"{folder / name}: not as it was written"
    return None


def sound_steps(run_dir: Path) -> tuple[int | None, list[str]]:
    """The newest step whose checkpoint is as it was written, and the faults of the newer ones.

    Raises `CheckpointError` where there are checkpoints and none is sound: nothing is overwritten then.
    """
    faults: list[str] = []
    for step in reversed(list_steps(run_dir)):
        fault = find_fault(run_dir, step)
        if fault is None:
            return step, faults
        faults.append(fault)
    if faults:
        raise CheckpointError(
            f"{run_dir}: no checkpoint can be restored ({faults[0]}); bring the files back, or remove checkpoint-* to "
            "start anew"
        )
    return None, []


def load_meta(run_dir: Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays. Raises: `CheckpointError` for a folder that is no checkpoint of ours."""
    meta = ocp.checkpointables_metadata(str(checkpoint_path(run_dir, step))).custom_metadata
    if not isinstance(meta, dict):
        raise CheckpointError(f"{checkpoint_path(run_dir, step)}: no metadata; not a checkpoint of rdro train")
    return meta  # pyright: ignore[reportReturnType]  # saved by us: keys are str


def load_items(run_dir: Path, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Arrays of the named items, placed as `abstract` (shapes, dtypes and shardings) says.

    Raises `CheckpointError` where the checkpoint holds other shapes, types or leaves.
    """
    path = checkpoint_path(run_dir, step)
    try:
        _check_types(path, abstract)
        return ocp.load_checkpointables(str(path), abstract)
    except (ValueError, KeyError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path}: cannot be restored ({reason}); remove it to use an older one") from error


def _check_types(path: Path, abstract: dict[str, Any]) -> None:
    """Raise where an array has another type than is wanted: orbax casts without a word."""
    saved = ocp.checkpointables_metadata(str(path)).metadata
    assert isinstance(saved, dict), "saved as named items"
    for name, wanted in abstract.items():
        types = {path_name(where): leaf.dtype for where, leaf in jax.tree.leaves_with_path(saved.get(name))}
        for where, leaf in jax.tree.leaves_with_path(wanted):
            found = types.get(path_name(where), leaf.dtype)
            if found != leaf.dtype:
                raise CheckpointError(f"{path}: {name}/{path_name(where)} was saved as {found}; wanted {leaf.dtype}")


def _remove(run_dir: Path, step: int) -> None:
    """Remove a checkpoint, its manifest first, so that a half-removed one does not count."""
    manifest_path(run_dir, step).unlink(missing_ok=True)
    shutil.rmtree(checkpoint_path(run_dir, step), ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> str:
    """Size in bytes and 128-bit hash of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return f"{path.stat().st_size}:{digest.hexdigest()}"
