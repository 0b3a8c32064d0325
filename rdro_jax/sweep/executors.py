"""Where runs go on: what an executor promises, and the one whose runs are processes of this machine."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from rdro_jax.errors import EXIT_DONE, EXIT_RESTART, ConfigError
from rdro_jax.sweep.runs import LOG_FILE, Run
from rdro_jax.sweep.spec import TPU_BOUNDS, Local

COMMAND = (sys.executable, "-m", "rdro_jax.cli")
"""What stands before the words of a run."""
ALIVE_FILE = ".alive"
"""Holds slot and process id of a run, and is locked while the run lives."""
VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}
"""Accelerator -> the variable that names the devices of a process."""


class Job(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code; None while it goes on."""
        ...

    def stop(self) -> None:
        """Ask it to save its state and end; asked a second time after a while, it is killed."""
        ...


class Executor(Protocol):
    """A place for runs."""

    detached: bool
    """Whether runs go on when the coordinator is asked to stop."""

    def start(self, run: Run, slot: int) -> Job:
        """Start a run, or go on with it."""
        ...

    def find(self, run: Run) -> tuple[Job, int | None] | None:
        """The job of a run that an earlier coordinator started, if it still goes on, and the slot whose devices it has
        here; None of a slot for a job elsewhere."""
        ...


class LocalExecutor:
    """Each run is a process of this machine, with the devices of its slot."""

    detached = False

    def __init__(self, config: Local, folder: Path):
        self._config, self._folder = config, folder

    def start(self, run: Run, slot: int) -> Job:
        """Start the process. It inherits a locked file, so that whoever comes after us sees that it lives."""
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / ALIVE_FILE).open("a+") as alive, (run.folder / LOG_FILE).open("a") as log:
            fcntl.flock(alive, fcntl.LOCK_EX)
            alive.truncate(0)
            alive.write(f"{slot} ")
            alive.flush()  # the slot is known from the moment that the run may have its devices
            process = subprocess.Popen(
                [*COMMAND, *run.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | shared_environment(self._folder) | devices_of_slot(self._config, slot),
                pass_fds=[alive.fileno()],
                start_new_session=True,  # Ctrl-C is for the coordinator, which asks its runs to save
            )
            alive.write(str(process.pid))
        return _Process(process, self._config.stop_seconds)

    def find(self, run: Run) -> tuple[Job, int | None] | None:
        """A process that outlived its coordinator, and its slot."""
        job = _Orphan(run, self._config.stop_seconds)
        return (job, read_alive(run.folder / ALIVE_FILE)[0]) if job.poll() is None else None


class _Process:
    """A child of ours."""

    def __init__(self, process: subprocess.Popen[bytes], stop_seconds: float):
        self._process, self._stopping = process, _Stopping(process.pid, stop_seconds)

    def poll(self) -> int | None:
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def stop(self) -> None:
        self._stopping.signal()


class _Orphan:
    """A child of a coordinator that is gone: its exit code will never be known, its files tell what it did."""

    def __init__(self, run: Run, stop_seconds: float):
        self._run, self._stop_seconds = run, stop_seconds
        self._stopping: _Stopping | None = None

    def poll(self) -> int | None:
        file = self._run.folder / ALIVE_FILE
        if file.exists():
            with file.open() as alive:
                try:
                    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
        return EXIT_RESTART if self._run.result() is None else EXIT_DONE

    def stop(self) -> None:
        _, pid = read_alive(self._run.folder / ALIVE_FILE)
        if pid is not None and self.poll() is None:
            self._stopping = self._stopping or _Stopping(pid, self._stop_seconds)
            self._stopping.signal()


class _Stopping:
    """SIGTERM at first, so that the run saves its state; SIGKILL when its time is up."""

    def __init__(self, pid: int, seconds: float):
        self._pid, self._seconds, self._since = pid, seconds, None

    def signal(self) -> None:
        late = self._since is not None and time.monotonic() - self._since > self._seconds
        if self._since is None or late:
            self._since = self._since or time.monotonic()
            try:
                os.kill(self._pid, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                return


def read_alive(file: Path) -> tuple[int | None, int | None]:
    """Slot and process id of a run that was started; None for what its coordinator was killed before writing."""
    slot, _, pid = file.read_text().partition(" ")
    return int(slot) if slot else None, int(pid) if pid else None


def shared_environment(folder: Path, *, absolute: bool = True) -> dict[str, str]:
    """Environment of every run: one compilation cache for all, unless the user has one."""
    cache_folder = folder / "compilation_cache"
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder.absolute() if absolute else cache_folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {} if "JAX_COMPILATION_CACHE_DIR" in os.environ else cache


def devices_of_slot(config: Local, slot: int) -> dict[str, str]:
    """Environment that shows a run the devices of its slot only: of those the user's environment names, if it does.

    Raises: ConfigError where it names too few.
    """
    if config.accelerator == "none":
        return {}
    count, name = config.devices_per_trial, VISIBLE[config.accelerator]
    first, end = slot * count, (slot + 1) * count
    listed = os.environ.get(name)
    devices = [str(device) for device in range(end)] if listed is None else listed.split(",") if listed else []
    if len(devices) < end:
        raise ConfigError(f"parallel: slot {slot} needs {end} devices in all, {name} names {len(devices)}")
    shown = {name: ",".join(devices[first:end])}
    if config.accelerator == "tpu":
        # Several processes on one TPU machine: each must be told its chips, and that it is alone with them.
        alone = {"TPU_PROCESS_BOUNDS": "1,1,1", "CLOUD_TPU_TASK_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return shown | alone | {"TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[count]}
    return shown
