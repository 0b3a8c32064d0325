"""Runs sweeps to their end in coordinators that are killed -9: `host.py [[FILE, KILLS], ...]`, JSON on stdout.

A coordinator is a fork of this process, which has imported everything once. At seeded random moments it is killed,
every second time its trials with it; then the next one goes on. The last one is left alone.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from rdro_jax.sweep import executors
from rdro_jax.sweep.run import run
from rdro_jax.sweep.spec import load_sweep

MOST_STEPS = 10
"""Between two kills."""
STUB = (sys.executable, "-S", str(Path(__file__).with_name("stub_trial.py")))


def coordinator(file: str, command: tuple[str, ...]) -> int:
    """Process id of a new coordinator, whose runs are `command` and their words."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.stdout = sys.stderr
            executors.COMMAND = command
            run(file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def living(folder: Path) -> dict[Path, int]:
    """Folder of a run -> its process id, for all that are alive."""
    alive = {file.parent: executors.read_alive(file)[1] for file in folder.glob(f"trials/*/{executors.ALIVE_FILE}")}
    return {run: pid for run, pid in alive.items() if pid and is_alive(pid)}


def is_alive(pid: int) -> bool:
    """Whether the process is a run that has not ended: of one that nobody has waited for the words are gone."""
    words = Path(f"/proc/{pid}/cmdline")
    try:
        return b"output_dir" in words.read_bytes()
    except OSError:
        return False


def kill_trials(folder: Path) -> int:
    """Kill every trial that is alive; returns how many."""
    runs = living(folder)
    for pid in runs.values():
        os.kill(pid, signal.SIGKILL)
    return len(runs)


def steps_done(folder: Path) -> int:
    """Steps that all trials have done together, repeated ones too."""
    return sum(len(file.read_text().split("\n")) - 1 for file in folder.glob("trials/*/steps.log"))


def run_and_kill(file: str, rng: random.Random, kills: int) -> dict[str, int]:
    """Kill, resume, and tell what was done."""
    folder = load_sweep(file).folder
    deaths = dict.fromkeys(("coordinators", "trials"), 0)
    for number in range(kills):
        pid, enough = coordinator(file, STUB), steps_done(folder) + rng.randint(1, MOST_STEPS)
        while steps_done(folder) < enough and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)  # fails the test where it was done already: then the kills came too late
        os.waitpid(pid, 0)
        deaths["coordinators"] += 1
        if number % 2 == 0:
            deaths["trials"] += kill_trials(folder)
    _, status = os.waitpid(coordinator(file, STUB), 0)
    return deaths | {"code": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    jobs = json.loads(sys.argv[1])
    print(json.dumps([run_and_kill(file, random.Random(number), kills) for number, (file, kills) in enumerate(jobs)]))
