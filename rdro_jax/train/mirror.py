"""A copy of a run's checkpoints in an object store, from which a machine that has none of them goes on."""

import shutil
from pathlib import Path
from posixpath import basename
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from rdro_jax.checkpoint import (
    checkpoint_path,
    find_fault,
    list_steps,
    manifest_path,
    manifest_step,
    newest_sound,
    put_in_place,
)
from rdro_jax.errors import CheckpointError, ConfigError, StorageError
from rdro_jax.run_files import ALPHA_FILE, EVALUATIONS_FILE, METRICS_FILE

BESIDE = (METRICS_FILE, EVALUATIONS_FILE, ALPHA_FILE)
"""What a run needs beside its checkpoints to end as if nothing had happened."""
PULLED = ".pulled"
"""Folder for checkpoints that are on their way here, until they are found to be as they were written."""


def push(run_dir: Path, url: str, step: int) -> None:
    """Copy the checkpoint of a step and `BESIDE` to `url`; drop there the checkpoints that are no longer here.

    The manifest goes last: a checkpoint without it does not count there either. Raises: StorageError.
    """
    store, folder = _open(url)
    try:
        _remove(store, folder, step)
        store.put(f"{checkpoint_path(run_dir, step)}/", f"{folder}/checkpoint-{step}/", recursive=True)
        beside = [run_dir / name for name in BESIDE if (run_dir / name).exists()]
        for file in (*beside, manifest_path(run_dir, step)):
            store.put(str(file), f"{folder}/{file.name}")
        for old in {*_steps(store, folder)} - {*list_steps(run_dir)}:
            _remove(store, folder, old)
    except Exception as error:  # every store has exceptions of its own
        raise StorageError(f"checkpoint.mirror: {url}: checkpoint-{step} not copied ({_brief(error)})") from error


def pull(run_dir: Path, url: str) -> list[str]:
    """Bring checkpoints and `BESIDE` here where `url` has newer ones than the newest sound one here.

    Returns the faults of those there that are not as they were written; they are left there. Raises: CheckpointError
    where none is sound, ConfigError where the store cannot be used, StorageError where it cannot be reached.
    """
    store, folder = _open(url)
    faults, place = [], run_dir / PULLED
    try:
        there, here = _steps(store, folder), newest_sound(run_dir)[0] or 0
        if max(there, default=0) <= here:
            return []
        for name in BESIDE:  # before the newest checkpoint, with which a pull counts as done
            if store.exists(f"{folder}/{name}"):
                store.get(f"{folder}/{name}", str(run_dir / name))
        for step in sorted(there):
            if step in list_steps(run_dir) and find_fault(run_dir, step) is None:
                continue
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            there_folder, manifest = checkpoint_path(place, step), manifest_path(place, step)
            store.get(f"{folder}/{there_folder.name}/", f"{there_folder}/", recursive=True)
            store.get(f"{folder}/{manifest.name}", str(manifest))
            if fault := find_fault(place, step):
                faults.append(f"{url}: {fault}")
            else:
                put_in_place(place, run_dir, step)
    except Exception as error:
        raise StorageError(f"checkpoint.mirror: {url}: cannot be read ({_brief(error)})") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if faults and not list_steps(run_dir):
        raise CheckpointError(
            f"{faults[0]}: no checkpoint can be restored; name another checkpoint.mirror to start anew"
        )
    return faults


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """The store of a URL and the folder in it. Raises: ConfigError."""
    parts = urlsplit(url)
    if parts.scheme and ("@" in parts.netloc or parts.query):  # the config is written into the run folder
        raise ConfigError(
            "checkpoint.mirror: got a URL with a user, a password or a ?query; wanted those in the environment"
        )
    try:
        store, folder = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"checkpoint.mirror: got '{url}': {_brief(error)}") from error
    store.invalidate_cache()
    return store, folder.rstrip("/")


def _steps(store: AbstractFileSystem, folder: str) -> list[int]:
    """Steps whose checkpoint is complete there."""
    try:
        names = store.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    return [step for name in names if (step := manifest_step(basename(name))) is not None]


def _remove(store: AbstractFileSystem, folder: str, step: int) -> None:
    """Remove a checkpoint, its manifest first."""
    for name in (f"{folder}/checkpoint-{step}.manifest.json", f"{folder}/checkpoint-{step}"):
        if store.exists(name):
            store.rm(name, recursive=True)


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
