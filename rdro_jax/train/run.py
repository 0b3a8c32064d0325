"""The run folder: what is written before the first step, and where a stopped run goes on."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from filelock import FileLock, Timeout

from rdro_jax.checkpoint import load_meta, set_aside, sound_steps
from rdro_jax.config import Config
from rdro_jax.data import Examples, check_words, prepare, shared_prompts
from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.losses import LossBase
from rdro_jax.models import load_model_config
from rdro_jax.parallel import from_first, is_first
from rdro_jax.run_files import (
    ALPHA_FILE,
    CONFIG_FILE,
    DATA_REPORT_FILE,
    ENVIRONMENT_FILE,
    HOLDER_FILE,
    LOCK_FILE,
    LOSS_FILE,
    RESULT_FILE,
    dotted,
    write_whole,
)
from rdro_jax.train.console import say
from rdro_jax.train.mirror import pull

MAY_CHANGE = (
    *(
        "output_dir",
        "report_to",
        "profile",
        "logging_steps",
        "eval_steps",
        "checkpoint",
        "max_runtime",
        "max_skipped_steps",
        "max_rollbacks",
        "step_timeout",
    ),
    *("data.prepared", "data.workers", "mesh", "compilation_cache"),
)
"""Keys a resumed run may give another value; all others decide its numbers. A mesh decides the order of sums only."""
PACKAGES = ("rdro_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


Task = Literal["evaluate", "export", "save"]
"""What a run does between two steps."""


class RunFolder(NamedTuple):
    """An opened run folder."""

    path: Path
    resume_step: int
    """Step of the newest sound checkpoint; 0 for a new run."""
    window: dict[str, Any] | None = None
    """Metrics fetched before that step and not yet logged."""
    owed: tuple[Task, ...] = ()
    """What was still to be done after that step, when a stop was asked for."""


def open_run(config: Config) -> RunFolder:
    """Make the run folder or reopen it, and write the resolved config and the environment into it.

    Of several processes the first does so, and all go on at the step it found.

    Raises `StorageError` where it cannot be written, `ConfigError` where it holds a run of another config, or where the
    first process has another.
    """
    _check_same_run("the first process", from_first(lambda: identity(config)), config)
    path, step, window, owed = from_first(lambda: _open_run(config))
    return RunFolder(Path(path), step, window, tuple(owed))


def _open_run(config: Config) -> tuple[str, int, dict[str, Any] | None, list[Task]]:
    """Path of the opened run folder, the step to go on after, metrics not yet logged, and what that step is owed."""
    path = make_folder(config)
    try:
        elsewhere = pull(path, config.checkpoint.mirror) if config.checkpoint.mirror else []
        step, faults = sound_steps(path)
        for fault in (*elsewhere, *faults):
            say(f"warning: {fault}; going back to an older checkpoint")
        meta = None if step is None else load_meta(path, step)
        if step is not None and meta is not None:
            _check_same_run(f"output_dir: {path}", meta["config"], config)
            set_aside(path, step)
        else:  # what another run found or ended with is not this one's
            for name in (ALPHA_FILE, RESULT_FILE):
                (path / name).unlink(missing_ok=True)
        write_whole(path / CONFIG_FILE, config.to_yaml())
        write_whole(path / ENVIRONMENT_FILE, json.dumps(environment(), indent=2))
    except OSError as error:
        raise StorageError(f"output_dir: {path}: {error.strerror}; wanted a folder that can be written") from error
    return str(path), step or 0, meta and meta["window"], meta["owed"] if meta else []


@contextmanager
def locked(config: Config) -> Iterator[None]:
    """Keep other runs out of the run folder while this is open; the system lets go of it if the process dies.

    Raises `ConfigError` naming the process that holds it, `StorageError` where the folder cannot be written.
    """
    held: list[FileLock] = []
    from_first(lambda: held.append(_lock(make_folder(config))))
    try:
        yield
    finally:
        for lock in held:
            _unlock(Path(config.output_dir), lock)


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """The same for any folder, of one process; JAX is not asked, so no device is taken. Raises: as `locked`."""
    lock = _lock(path)
    try:
        yield
    finally:
        _unlock(path, lock)


def _lock(path: Path) -> FileLock:
    try:
        lock = FileLock(path / LOCK_FILE, timeout=0)
        lock.acquire()
        (path / HOLDER_FILE).write_text(f"process {os.getpid()} on {platform.node()}")
        return lock
    except Timeout:
        holder = (path / HOLDER_FILE).read_text() if (path / HOLDER_FILE).exists() else "another process"
        raise ConfigError(
            f"output_dir: {path} is held by {holder}; wait for that run, or name another folder for a new one"
        ) from None
    except OSError as error:
        raise StorageError(f"output_dir: {path}: {error.strerror}; wanted a folder that can be written") from error


def _unlock(path: Path, lock: FileLock) -> None:
    (path / HOLDER_FILE).unlink(missing_ok=True)
    lock.release()


def make_folder(config: Config) -> Path:
    """The run folder. Raises: StorageError where it cannot be made."""
    path = Path(config.output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"output_dir: {path}: {error.strerror}; wanted a folder that can be written") from error
    return path


def read_data(config: Config, folder: Path) -> tuple[Examples, Examples | None]:
    """Training and held-out examples, tokenised unless they were before; `folder` gets their data_report.json.

    Of several processes the first tokenises, and the others find the result.
    """
    made: list[Examples | None] = []
    from_first(lambda: made.extend(_read_data(config, folder)))
    training, heldout = made or _read_data(config, folder)
    assert training is not None, "only the held-out examples may be missing"
    return training, heldout


def _read_data(config: Config, folder: Path) -> tuple[Examples, Examples | None]:
    data = config.data
    read = functools.partial(
        prepare,
        tokenizer=config.model.path,
        config=data,
        folder=data.prepared or Path(config.output_dir) / "prepared",
        require_label=config.loss.needs_labels,
        layout=config.loss.layout,
        tell=say,
    )
    if data.heldout_fraction:
        training, heldout = read(data.train, side="train"), read(data.train, side="heldout")
    else:
        training, heldout = read(data.train), read(data.eval) if data.eval else None
    reports = {"train": dataclasses.asdict(training.report)}
    if heldout is not None:
        reports["eval"] = dataclasses.asdict(heldout.report)
        seen = shared_prompts(heldout, training)
        reports["eval"]["prompts_in_train"] = int(seen.sum())
        if seen.any():
            say(f"{heldout.report.path}: {seen.sum()} of {len(seen)} held-out examples have a prompt trained on")
    if is_first():
        write_json(folder / DATA_REPORT_FILE, reports)
    return training, heldout


def check_vocabulary(config: Config, *parts: Examples | None) -> None:
    """Raise where the tokenizer writes tokens that the policy or the reference does not know."""
    folders = [config.model.path, *([config.reference.path] if config.reference.path else [])]
    vocabularies = {folder: load_model_config(folder).vocab_size for folder in folders}
    for examples in filter(None, parts):
        check_words(examples.tokens, vocabularies)


def write_loss(run: RunFolder, loss: LossBase) -> None:
    """Write the loss that the run minimises, with its floor and the bound of its log-ratio, in nats."""
    told = dataclasses.asdict(loss) | {"floor": loss.floor, "log_bound": loss.log_bound}
    from_first(lambda: write_json(run.path / LOSS_FILE, told))


def write_result(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Write the final metrics; their file says that the run is finished."""
    from_first(lambda: write_json(run.path / RESULT_FILE, metrics))


def finished_metrics(run: RunFolder) -> dict[str, Any] | None:
    """Final metrics of a finished run; None where steps are left."""
    file = run.path / RESULT_FILE
    return from_first(lambda: json.loads(file.read_text()) if file.exists() else None)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one move, so that a reader never sees half of one. Raises: `StorageError`."""
    try:
        write_whole(path, json.dumps(value, indent=2))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}; free space and start again") from error


def environment() -> dict[str, Any]:
    """Versions and devices, for the record of a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
    }


def identity(config: Config) -> dict[str, Any]:
    """What decides the numbers of a run, by dotted key: the config without what a resumed run may change."""
    flat = dotted(config.model_dump(mode="json"))
    return {key: value for key, value in flat.items() if not {key, key.partition(".")[0]} & {*MAY_CHANGE}}


def _check_same_run(who: str, saved: dict[str, Any], config: Config) -> None:
    now = identity(config)
    changed = [key for key in now | saved if saved.get(key) != now.get(key)]
    if changed:
        diff = ", ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed[:6])
        raise ConfigError(
            f"{who} holds a run of another config ({diff}); "
            "name another folder for a new run, or set the old values to resume this one"
        )
