"""Runs sweeps of `rdro train` to their end while their processes are killed -9: `real_host.py JOBS`, JSON on stdout.

JOBS is `[[FILE, SECONDS, {TARGET: KILLS}], ...]` in JSON. The moments of the kills are drawn by a seed, uniformly over
the first SECONDS of the sweep, wherever its processes are by then. Targets: `coordinator`; `run`, one of those that go
on; `both`, the coordinator and all of them; `save`, a run in the middle of its next save.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rdro_jax.checkpoint import list_steps
from rdro_jax.sweep import executors
from rdro_jax.sweep.spec import load_sweep
from tests.sweep.host import coordinator, is_alive, living

SAVE_SECONDS = 0.3
"""A run is killed within so many seconds of the begin of a save."""


class Killed:
    """A sweep under way, and what was killed of it."""

    def __init__(self, file: str, rng: random.Random):
        self._file, self._rng, self._folder = file, rng, load_sweep(file).folder
        self._began = time.monotonic()
        self._pid = coordinator(file, executors.COMMAND)
        self.coordinators = self.in_save = 0
        self.runs: list[tuple[str, int]] = []
        """Each run that was killed, by its folder, and the newest step that it had saved by then; 0 for none."""

    def wait(self, until: float = 0.0, something: Any = lambda: True) -> Any:
        """What `something` gives, once it gives something and so many seconds of the sweep are over."""
        while True:
            assert os.waitpid(self._pid, os.WNOHANG) == (0, 0), f"{self._file} ended before its last kill"
            if time.monotonic() - self._began >= until and (found := something()):
                return found
            time.sleep(0.005)

    def strike(self, target: str) -> None:
        """Kill what is called so, as soon as it is there."""
        if target == "save":
            while not self._kill_in_save():
                pass
            return
        if target == "run":
            known = len(self.runs)
            while len(self.runs) == known:
                self._kill_run(self._rng.choice(self.wait(something=lambda: [*living(self._folder)])))
            return
        self.wait(something=lambda: target == "coordinator" or living(self._folder))
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self.coordinators += 1
        if target == "both":
            for run in living(self._folder):
                self._kill_run(run)
        self._pid = coordinator(self._file, executors.COMMAND)

    def end(self) -> int:
        """Exit code of the last coordinator, which is left alone."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _kill_run(self, run: Path) -> None:
        pid = living(self._folder).get(run)
        if pid is None:  # it ended a moment ago
            return
        os.kill(pid, signal.SIGKILL)
        while is_alive(pid):
            time.sleep(0.001)
        self.runs.append((str(run), max(list_steps(run), default=0)))

    def _kill_in_save(self) -> bool:
        """Kill the next run that saves; whether its save was cut off."""
        before = time.time()
        run, saving = self.wait(something=lambda: self._new_save(before))
        time.sleep(self._rng.uniform(0, SAVE_SECONDS))
        known = len(self.runs)
        self._kill_run(run)
        cut = len(self.runs) > known and saving.exists()
        self.in_save += cut
        return cut

    def _new_save(self, since: float) -> tuple[Path, Path] | None:
        """A living run that has begun to save since then, and the file that says so."""
        found = [(run, file) for run in living(self._folder) for file in run.glob("checkpoint-*.saving")]
        return next(((run, file) for run, file in found if _made(file) > since), None)


def _made(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def run_and_kill(file: str, rng: random.Random, seconds: float, kills: dict[str, int]) -> dict[str, Any]:
    """Kill, resume, and tell what was done."""
    targets = [target for target, count in kills.items() for _ in range(count)]
    rng.shuffle(targets)
    moments = sorted(rng.uniform(0, seconds) for _ in targets)
    sweep = Killed(file, rng)
    for moment, target in zip(moments, targets, strict=True):
        sweep.wait(until=moment)
        sweep.strike(target)
    code = sweep.end()
    return {"code": code, "coordinators": sweep.coordinators, "runs": sweep.runs, "in_save": sweep.in_save}


if __name__ == "__main__":
    jobs = enumerate(json.loads(sys.argv[1]))
    print(json.dumps([run_and_kill(file, random.Random(n), seconds, kills) for n, (file, seconds, kills) in jobs]))
