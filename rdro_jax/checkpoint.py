"""Checkpoints of a run: `checkpoint-N/` folders written by orbax, asynchronously and atomically, each with a manifest.

Parameters, optimizer state and what else a state holds are separate items, so that the parameters can be restored
alone; what is not an array (config) travels as the checkpoint's own metadata. Orbax restores a flipped bit in array
data without a word: the manifest, `checkpoint-N.manifest.json`, has the size and the hash of every file and one of
itself, and a checkpoint counts once its manifest is there. While it is being made, `checkpoint-N.saving` says so: a
folder without a manifest and without that file is one whose manifest was lost.
"""

import importlib.metadata
import json
import logging
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
from rdro_jax.run_files import seal, unseal, write_whole

HASH_BLOCK = 1 << 24
"""Bytes read at once for a hash."""
VERSIONS = ("rdro_jax", "jax", "orbax-checkpoint")
"""Packages whose versions a manifest names: those that decide what the files mean."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of folders that orbax has not finished, and of those being removed."""
DAMAGED = ".damaged"
"""Ends the name of the folder of a checkpoint that was passed over, until the next one is whole."""


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
            _clean(run_dir)

    def save(
        self, step: int, items: dict[str, Any], meta: dict[str, Any], metrics: Mapping[str, float | None] | None = None
    ) -> None:
        """Start writing `checkpoint-{step}`, the previous one having been waited for; `metrics` say how good it is.

        Raises: see `wait`.
        """
        self.wait()
        if is_first():
            _remove(self._run_dir, step)  # a damaged one that was passed over
            _saving_path(self._run_dir, step).touch()
        path = str(checkpoint_path(self._run_dir, step))
        written = ocp.save_checkpointables_async(path, items, custom_metadata=meta)
        told = {"metrics": metrics and dict(metrics), "config": _hash_config(meta), "arrays": _describe(items)}
        self._pending = self._thread.submit(self._finish, step, written, told, time.monotonic())

    def tell(self, step: int, metrics: Mapping[str, float | None] | None) -> None:
        """Say how good a checkpoint is that was there before it was known; None says nothing."""
        if metrics is not None and is_first():
            _write_sealed(self._run_dir, step, _read_manifest(self._run_dir, step) | {"metrics": dict(metrics)})

    def _finish(self, step: int, written: ocp.AsyncResponse, told: dict[str, Any], begin: float) -> None:
        """Wait for orbax, write the manifest, drop what is beyond the limit, copy what was made."""
        written.result()
        if not is_first():
            return
        write_manifest(self._run_dir, step, told)
        self.seconds = time.monotonic() - begin
        _saving_path(self._run_dir, step).unlink(missing_ok=True)
        self._prune()
        if self._copy is not None:
            self._copy(step)

    def _prune(self) -> None:
        """Keep the newest checkpoints and the best; what was set aside has got its successor."""
        best = best_step(self._run_dir, self._config)
        for old in _folder_steps(self._run_dir)[: -self._config.save_total_limit]:
            if old != best:
                _remove(self._run_dir, old)
        for damaged in self._run_dir.glob(f"checkpoint-*{DAMAGED}"):
            shutil.rmtree(damaged, ignore_errors=True)

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


def _saving_path(run_dir: Path, step: int) -> Path:
    """File that says that the checkpoint of a step is being made."""
    return run_dir.absolute() / f"checkpoint-{step}.saving"


def _clean(run_dir: Path) -> None:
    """Remove what a killed process left of checkpoints it was writing or removing."""
    for saving in run_dir.glob("checkpoint-*.saving"):
        step = int(saving.stem.removeprefix("checkpoint-"))
        if not manifest_path(run_dir, step).exists():
            shutil.rmtree(checkpoint_path(run_dir, step), ignore_errors=True)
        saving.unlink(missing_ok=True)
    for unfinished in run_dir.glob(f"checkpoint-*{UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for unwritten in run_dir.glob(".checkpoint-*.tmp"):
        unwritten.unlink(missing_ok=True)


def _folder_steps(run_dir: Path) -> list[int]:
    """Steps that have a manifest, or a folder whose manifest was lost, oldest first."""
    folders = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in run_dir.glob("checkpoint-*"))
    lost = {int(match[1]) for match in folders if match and not _saving_path(run_dir, int(match[1])).exists()}
    return sorted(lost | {*list_steps(run_dir)})


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
    """The manifest of a step; empty where it is not as it was written."""
    try:
        return unseal(manifest_path(run_dir, step).read_bytes()) or {}
    except OSError:
        return {}


def write_manifest(run_dir: Path, step: int, told: Mapping[str, Any]) -> None:
    """Write sizes and hashes of the files of a checkpoint, and what is told of it, in one move.

    The step is also the position in the data: batches are a function of it.
    """
    folder = checkpoint_path(run_dir, step)
    files = {path.relative_to(folder).as_posix(): _fingerprint(path) for path in _files(folder)}
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    _write_sealed(run_dir, step, {"step": step, **told, "versions": versions, "files": files})


def _write_sealed(run_dir: Path, step: int, manifest: Mapping[str, Any]) -> None:
    write_whole(manifest_path(run_dir, step), json.dumps(seal(manifest), indent=1))


def _describe(items: dict[str, Any]) -> dict[str, str]:
    """Shape and type of every array, by its path: {'params/embed': 'float32[512,8]'}."""
    return {
        path_name(path): f"{leaf.dtype}{str([*leaf.shape]).replace(' ', '')}"
        for path, leaf in jax.tree.leaves_with_path(items)
    }


def _hash_config(meta: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(meta.get("config"), sort_keys=True).encode())


def find_fault(run_dir: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of a step, naming the file; None for one that is as it was written."""
    folder, manifest = checkpoint_path(run_dir, step), manifest_path(run_dir, step)
    wanted = _read_manifest(run_dir, step).get("files")
    if not isinstance(wanted, dict):
        return f"{manifest}: {'not as it was written' if manifest.exists() else 'missing'}"
    found = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name in wanted.keys() - found:
        return f"{folder / name}: missing"
    for name, fingerprint in wanted.items():
        if _fingerprint(folder / name) != fingerprint:
            return f"{folder / name}: not as it was written"
    return None


def newest_sound(run_dir: Path) -> tuple[int | None, list[str]]:
    """The newest step whose checkpoint is as it was written, None without one; the faults of the newer ones."""
    faults: list[str] = []
    for step in reversed(_folder_steps(run_dir)):
        fault = find_fault(run_dir, step)
        if fault is None:
            return step, faults
        faults.append(fault)
    return None, faults


def sound_steps(run_dir: Path) -> tuple[int | None, list[str]]:
    """What `newest_sound` finds.

    Raises `CheckpointError` where there are checkpoints and none is sound: nothing is overwritten then.
    """
    step, faults = newest_sound(run_dir)
    if step is None and faults:
        raise CheckpointError(
            f"{run_dir}: no checkpoint can be restored ({faults[0]}); bring the files back, or remove checkpoint-* to "
            "start anew"
        )
    return step, faults


def set_aside(run_dir: Path, step: int) -> None:
    """Give the checkpoints after a step other names: a run that goes on there has passed them over."""
    for later in _folder_steps(run_dir):
        if later > step:
            folder, manifest = checkpoint_path(run_dir, later), manifest_path(run_dir, later)
            aside = folder.with_name(f"{folder.name}{DAMAGED}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            folder.rename(aside)
            if manifest.exists():
                manifest.rename(aside / manifest.name)


def put_in_place(place: Path, run_dir: Path, step: int) -> None:
    """Move a sound checkpoint from another folder of the same disk here, its manifest last."""
    _remove(run_dir, step)
    checkpoint_path(place, step).rename(checkpoint_path(run_dir, step))
    manifest_path(place, step).replace(manifest_path(run_dir, step))


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
    """Remove a checkpoint. Its folder gets another name first: what a kill leaves of it is not taken for one."""
    folder, manifest = checkpoint_path(run_dir, step), manifest_path(run_dir, step)
    removed = folder.with_name(f"{folder.name}{UNFINISHED}-removed")
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        folder.rename(removed)
    manifest.unlink(missing_ok=True)
    shutil.rmtree(removed, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> str:
    """Size in bytes and 128-bit hash of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK):
            digest.update(block)
    return f"{path.stat().st_size}:{digest.hexdigest()}"
