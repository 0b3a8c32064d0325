"""Runs that go on elsewhere: SLURM jobs, managed jobs of SkyPilot."""

import fcntl
import json
import logging
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rdro_jax.errors import EXIT_DONE, EXIT_RESTART, ConfigError
from rdro_jax.sweep import executors
from rdro_jax.sweep.executors import Executor, Job, LocalExecutor, devices_of_slot, shared_environment
from rdro_jax.sweep.runs import LOG_FILE, Run
from rdro_jax.sweep.spec import LoadedSweep, Local, Sky, Slurm
from rdro_jax.train.console import say

JOB_FILE, CODE_FILE, LAUNCH_FILE = "job.json", "exit_code", ".launch"
CLUSTER = "slurm"
"""submitit's name of the engine."""
MOST_TIMEOUTS = 1_000_000
"""Times a job is requeued at its time limit: until its run is done."""
TAKEN_AWAY_SECONDS = 60.0
"""Within which SLURM kills a job that it told to stop: KillWait, 30 s by default, and room."""


def make_executor(loaded: LoadedSweep) -> Executor:
    """The executor a sweep names. Raises: ConfigError where what it needs is missing."""
    executor = loaded.sweep.executor
    if isinstance(executor, Local):
        devices_of_slot(executor, loaded.sweep.parallel - 1)  # are there enough?
        return LocalExecutor(executor, loaded.folder)
    if isinstance(executor, Slurm):
        return SlurmExecutor(executor, loaded.folder)
    return SkyExecutor(executor, loaded.folder)


class SlurmExecutor:
    """Each run is a SLURM job that submitit submits, requeues before its time limit and when it is preempted."""

    detached = True

    def __init__(self, config: Slurm, folder: Path):
        try:
            import submitit
        except ImportError:
            raise ConfigError("executor.name: slurm needs the package submitit: pip install submitit") from None
        # Without accounting it would complain of sacct at every look.
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self._submitit, self._folder = submitit, folder
        if shutil.which("sbatch") is None:
            raise ConfigError("executor.name: slurm needs sbatch; start the sweep on a login node of the cluster")
        # What a job runs stands there as Python objects, which run code when they are read: ours alone to write.
        (folder / "slurm").mkdir(mode=0o700, parents=True, exist_ok=True)
        # By default submitit gives up a job that ran out of its time thrice.
        self._executor = submitit.AutoExecutor(
            folder=folder / "slurm", cluster=CLUSTER, slurm_max_num_timeout=MOST_TIMEOUTS
        )
        self._executor.update_parameters(timeout_min=config.timeout_min, **config.options)

    def start(self, run: Run, slot: int) -> Job:
        """Submit the run; the job goes on when we do not."""
        del slot
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / CODE_FILE).unlink(missing_ok=True)
        name = _job_name(run)
        # The name first: of a coordinator that is killed while it submits, the next one finds the job by it.
        (run.folder / JOB_FILE).write_text(json.dumps({"slurm": None}))
        self._executor.update_parameters(name=name)
        job = self._executor.submit(Attempt(run, [*executors.COMMAND, *run.words], shared_environment(self._folder)))
        (run.folder / JOB_FILE).write_text(json.dumps({"slurm": job.job_id}))
        return _SlurmJob(run, job)

    def find(self, run: Run) -> tuple[Job, None] | None:
        """The job an earlier coordinator submitted, if SLURM still has it."""
        told = _read_job(run)
        if "slurm" not in told:
            return None
        number = told["slurm"] or self._submitted(_job_name(run))
        if number is None:
            return None
        (run.folder / JOB_FILE).write_text(json.dumps({"slurm": number}))
        job = _SlurmJob(run, self._submitit.SlurmJob(folder=self._folder / "slurm", job_id=number))
        return (job, None) if job.poll() is None else None

    def _submitted(self, name: str) -> str | None:
        """Number of the job of this name in SLURM's queue that can run: whose call submitit has put in its place."""
        asked = ["squeue", "--me", "--noheader", "--format=%A", f"--name={name}"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"squeue: {done.stderr.strip()}; is a job '{name}' of this sweep submitted?")
        numbers = done.stdout.split()
        return next((n for n in numbers if (self._folder / "slurm" / f"{n}_submitted.pkl").exists()), None)


class Attempt:
    """What a SLURM job does: run the command; save and be requeued when its time is up."""

    def __init__(self, run: Run, command: list[str], environment: dict[str, str]):
        self._run, self._command, self._environment = run, command, environment
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        # submitit's SIGUSR2 reaches every process of the job; only its own handler may act on it.
        command = ["env", "--ignore-signal=USR2", *self._command]
        with (self._run.folder / LOG_FILE).open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self._environment)
            code = self._process.wait()
        code = code if code >= 0 else 128 - code
        if code == EXIT_RESTART:
            # Told to stop, as the job is about to be requeued: if it ended by itself, its run would be submitted again.
            time.sleep(TAKEN_AWAY_SECONDS)
        (self._run.folder / CODE_FILE).write_text(str(code))
        return code

    def checkpoint(self) -> Any:
        """What submitit calls before the job is taken away: the same again, once the run has saved its state."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # Not its wait(): that of `__call__`, which this interrupts, holds the lock it would ask for.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Attempt(self._run, self._command, self._environment))


class _SlurmJob:
    def __init__(self, run: Run, job: Any):
        self._run, self._job, self._cancelled = run, job, False

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        return _written_code(self._run)

    def stop(self) -> None:
        # The state was saved at the last checkpoint; a cancelled job is gone, a later one goes on there.
        if not self._cancelled:
            self._job.cancel()
        self._cancelled = True


class SkyExecutor:
    """Each run is a managed job: `sky jobs launch` of the sweep's task file, told its command by RDRO_COMMAND."""

    detached = True

    def __init__(self, config: Sky, folder: Path):
        if shutil.which("sky") is None:
            raise ConfigError("executor.name: sky needs SkyPilot's command: pipx install skypilot, then sky check")
        if not Path(config.task).is_file():
            raise ConfigError(f"executor.task: no file '{config.task}'; wanted a SkyPilot task")
        self._config, self._folder = config, folder
        self._secrets, self._queue = secret_words(Path(config.task)), _SkyQueue()

    def start(self, run: Run, slot: int) -> Job:
        """Launch the run; SkyPilot restarts it where a spot machine is taken away."""
        del slot
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / CODE_FILE).unlink(missing_ok=True)
        name = _job_name(run)
        code = shlex.quote(str(run.folder / CODE_FILE))
        command = f"rdro {shlex.join(run.words)}; code=$?; echo $code > {code}; exit $code"
        # The folder as it is called there, where this machine's absolute path may mean nothing.
        cache = [f"{key}={value}" for key, value in shared_environment(self._folder, absolute=False).items()]
        told = ("--name", name, "--env", f"RDRO_COMMAND={command}", *(word for e in cache for word in ("--env", e)))
        # The name first: of a coordinator that is killed while it launches, the next one finds the job by it, once the
        # launch, which outlives its coordinator and holds this lock, is over.
        (run.folder / JOB_FILE).write_text(json.dumps({"sky": name}))
        with (run.folder / LAUNCH_FILE).open("a") as launch:
            fcntl.flock(launch, fcntl.LOCK_EX)
            words = ("jobs", "launch", "--yes", "--detach-run", *told, *self._secrets, self._config.task)
            _sky(*words, keeps_open=(launch.fileno(),))
        self._queue.expect(name)
        return _SkyJob(run, name, self._queue)

    def find(self, run: Run) -> tuple[Job, None] | None:
        """The job an earlier coordinator launched, if SkyPilot still has it."""
        name = _read_job(run).get("sky")
        if not name:
            return None
        self._wait_for_launch(run)
        return (_SkyJob(run, name, self._queue), None) if self._queue.end_of(name) is None else None

    def _wait_for_launch(self, run: Run) -> None:
        with (run.folder / LAUNCH_FILE).open("a") as launch:
            try:
                fcntl.flock(launch, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{run.name}: waiting for the launch that an earlier coordinator began")
                fcntl.flock(launch, fcntl.LOCK_EX)
                self._queue.forget()


class _SkyJob:
    def __init__(self, run: Run, name: str, queue: "_SkyQueue"):
        self._run, self._name, self._queue, self._cancelled = run, name, queue, False

    def poll(self) -> int | None:
        state = self._queue.end_of(self._name)
        if state not in SKY_REFUSALS or self._run.result() is not None:
            return None if state is None else _written_code(self._run)
        if not self._cancelled:
            with (self._run.folder / LOG_FILE).open("a") as log:
                log.write(f"rdro: error: SkyPilot: {state}; sky jobs logs --name {self._name} tells why\n")
        return ConfigError.exit_code

    def stop(self) -> None:
        if not self._cancelled:
            _sky("jobs", "cancel", "--yes", "--name", self._name)
        self._cancelled = True


class _SkyQueue:
    """What SkyPilot says of its managed jobs, asked for all of them at once."""

    SECONDS = 30.0
    """Between two questions."""
    UNANSWERED = 20
    """Questions in a row that may go unanswered, as on a train: ten minutes."""

    def __init__(self):
        self._states: dict[str, str] = {}
        self._asked, self._left = -math.inf, 0

    def expect(self, name: str) -> None:
        """A job of this name was launched: it has not ended, whatever is said of an earlier one."""
        self._states[name] = ""

    def forget(self) -> None:
        """Ask anew at the next question."""
        self._asked = -math.inf

    def end_of(self, name: str) -> str | None:
        """The state that nothing comes after; None while it goes on. A job that SkyPilot does not know has SUCCEEDED.

        Raises: ConfigError where SkyPilot does not answer, at first or for long.
        """
        if time.monotonic() - self._asked > self.SECONDS:
            self._ask()
        state = self._states.get(name, SKY_ENDS[0])
        return state if state in SKY_ENDS else None

    def _ask(self) -> None:
        self._asked = time.monotonic()
        try:
            jobs = json.loads(_sky("jobs", "queue", "--all", "--output", "json") or "[]")
        except ConfigError as error:
            if not self._left:
                raise
            self._left -= 1
            say(f"warning: {error}; asked again in {self.SECONDS:.0f} s")
            return
        self._left = self.UNANSWERED
        # The newest stands first, and is written last.
        self._states = {job["job_name"]: job["status"].rpartition(".")[2] for job in reversed(jobs)}


SKY_ENDS = (
    *("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "FAILED_CONTROLLER"),
    *("CANCELLED", "FAILED_DRIVER"),
)
"""States of a managed job that nothing comes after."""
SKY_REFUSALS = ("FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE", "CANCELLED")
"""Those that another launch would end in again: the trial has failed."""


def secret_words(task: Path) -> list[str]:
    """`--secret NAME` for each secret without a value in a SkyPilot task: `sky` takes it from the environment.

    Raises: ConfigError where the environment has none of that name.
    """
    secrets = yaml.safe_load(task.read_text(encoding="utf-8")).get("secrets") or {}
    names = [name for name, value in secrets.items() if value is None]
    for name in names:
        if name not in os.environ:
            raise ConfigError(f"{task}: secrets: {name} is not in the environment; export it, or take it out there")
    return [word for name in names for word in ("--secret", name)]


def _sky(*words: str, keeps_open: tuple[int, ...] = ()) -> str:
    """What a `sky` command prints; it inherits the files `keeps_open`. Raises: ConfigError with its last line."""
    done = subprocess.run(["sky", *words], capture_output=True, text=True, check=False, pass_fds=keeps_open)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().split("\n")[-1]
        raise ConfigError(f"sky {words[0]} {words[1]}: {said}")
    return done.stdout


def _job_name(run: Run) -> str:
    """What the engine calls the job of a run: a function of its folder, in the characters that all engines take."""
    name = f"rdro-{run.folder.absolute().as_posix().strip('/').replace('/', '-')}".lower()
    return re.sub(r"[^a-z0-9-]", "-", name)[-50:].strip("-")


def _read_job(run: Run) -> dict[str, str | None]:
    """Engine -> name or number of the job, as far as an earlier coordinator came; empty where it submitted none."""
    file = run.folder / JOB_FILE
    written = file.read_text() if file.exists() else ""
    return json.loads(written) if written else {}


def _written_code(run: Run) -> int:
    """Exit code of a job that ended: as its files tell it; without a word it was taken away."""
    if run.result() is not None:
        return EXIT_DONE
    file = run.folder / CODE_FILE
    written = file.read_text().strip() if file.exists() else ""
    return int(written) if written.isdigit() else 128 + signal.SIGKILL
