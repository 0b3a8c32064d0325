"""Copies of metrics.jsonl in the tools people watch runs with. The file is the truth; a failing tracker is let go."""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib import import_module
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rdro_jax.errors import ConfigError
from rdro_jax.train.console import say

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "json": "json"}
PROJECT_VARIABLE, PROJECT = "RDRO_PROJECT", "rdro"
"""Environment variable that names the project at a tracker, and its name where that is not set."""

PATIENCE = 30.0
"""Seconds that a tracker may take over a call before it is let go."""


class Tracker(NamedTuple):
    """An opened tracker."""

    write: Callable[[int, dict[str, float]], Any]
    """Called with a step and its numbers."""
    close: Callable[[], Any]


class Told(NamedTuple):
    """What a tracker is told of a run when it is opened."""

    folder: Path
    config: dict[str, Any]
    """By dotted key."""
    resume_step: int


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError where the package of a tracker is not installed."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"report_to: {name} needs the package {PACKAGES[name]}, which is not installed: pip install it, or "
                "leave the tracker out; metrics.jsonl is written in any case"
            )


class Trackers:
    """The trackers of a run, none of which can stop it: not by an error, and not by hanging."""

    def __init__(self, names: Sequence[str], told: Told):
        """Open each; one that fails is reported and left out."""
        self._lines = {name: Line() for name in names}
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._guard(name, lambda name=name: self._open.update({name: OPENERS[name](told)}))

    def write(self, step: int, line: dict[str, Any]) -> None:
        """Pass on the numbers of a line of metrics."""
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        for name, tracker in list(self._open.items()):
            self._guard(name, lambda tracker=tracker: tracker.write(step, numbers))

    def close(self) -> None:
        """Let the trackers finish."""
        for name, tracker in list(self._open.items()):
            self._guard(name, tracker.close)
        self._open.clear()
        for line in self._lines.values():
            line.end()

    def _guard(self, name: str, act: Callable[[], Any]) -> None:
        try:
            self._lines[name].call(act)
        except Exception as error:  # whatever a tracker meets, network or disk, is not worth the run
            self._open.pop(name, None)
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            say(f"warning: report_to: {name}: {reason}; the run goes on without it, metrics.jsonl has everything")


class Line:
    """A thread in which all calls of one tracker are made: some keep what they know by thread."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        Thread(target=self._serve, daemon=True).start()

    def call(self, act: Callable[[], Any]) -> None:
        """Wait until `act` is done. Raises: what it raises; TimeoutError where it takes longer than `PATIENCE`."""
        done: Future[Any] = Future()
        self._asked.put((act, done))
        try:
            done.result(PATIENCE)
        except TimeoutError:
            raise TimeoutError(f"no answer for {PATIENCE:g} s") from None

    def end(self) -> None:
        """Let the thread end after the calls it was asked for."""
        self._asked.put(None)

    def _serve(self) -> None:
        while asked := self._asked.get():
            act, done = asked
            try:
                done.set_result(act())
            except Exception as error:
                done.set_exception(error)


def open_tensorboard(told: Told) -> Tracker:
    """Event files in the run folder, for `tensorboard --logdir`.

    Written by the package's `EventsWriter`: its `SummaryWriter` has a thread of its own, which waits for ever once the
    clock is put back, and dies with a traceback where the disk is full.
    """
    folder = told.folder / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    events, summaries = (import_module(f"tensorboardX.proto.{name}_pb2") for name in ("event", "summary"))
    writer = import_module("tensorboardX.event_file_writer").EventsWriter(
        str(folder / "events"),
        f".{os.getpid()}",  # two starts within a second are two files
    )

    def put(step: int, **content: Any) -> None:
        writer.write_event(events.Event(wall_time=time(), step=step, **content))
        writer.flush()

    if told.resume_step:  # what an earlier run wrote beyond the checkpoint is not shown
        put(told.resume_step + 1, session_log=events.SessionLog(status=events.SessionLog.START))

    def write(step: int, numbers: dict[str, float]) -> None:
        values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        put(step, summary=summaries.Summary(value=values))

    return Tracker(write, writer.close)


def open_wandb(told: Told) -> Tracker:
    """A run at Weights & Biases, which reads its key and its mode (WANDB_MODE=offline) from the environment."""
    _check_wandb_key()
    run = import_module("wandb").init(**_named(told), dir=str(told.folder), config=told.config)
    return Tracker(lambda step, numbers: run.log(numbers, step=step), run.finish)


def _check_wandb_key() -> None:
    """Raises: ConfigError where W&B would ask a person for a key, or fail for want of one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc(os.environ.get("NETRC")).authenticators(host)  # where `wandb login` keeps it
    except (OSError, NetrcParseError):
        known = None
    if known is None:
        raise ConfigError("WANDB_API_KEY is not set; set it, run `wandb login`, or set WANDB_MODE=offline")


def open_trackio(told: Told) -> Tracker:
    """A run of trackio, kept on this machine."""
    trackio = import_module("trackio")
    trackio.init(**_named(told), config=told.config)
    return Tracker(lambda step, numbers: trackio.log(numbers, step=step), trackio.finish)


def open_mlflow(told: Told) -> Tracker:
    """A run at the server of MLFLOW_TRACKING_URI, else in ./mlflow.db; a folder is refused by MLflow 3.17."""
    mlflow = import_module("mlflow")
    named = _named(told)
    mlflow.set_experiment(named["project"])
    mlflow.start_run(run_name=named["name"])
    mlflow.log_params(told.config)
    return Tracker(lambda step, numbers: mlflow.log_metrics(numbers, step=step), mlflow.end_run)


def open_json(told: Told) -> Tracker:
    """JSON lines on stdout, for the program that started the run."""
    return Tracker(lambda step, numbers: print(json.dumps({"step": step} | numbers), flush=True), lambda: None)


def _named(told: Told) -> dict[str, str]:
    return {"project": os.environ.get(PROJECT_VARIABLE, PROJECT), "name": told.folder.name}


OPENERS: dict[str, Callable[[Told], Tracker]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "trackio": open_trackio,
    "mlflow": open_mlflow,
    "json": open_json,
}
