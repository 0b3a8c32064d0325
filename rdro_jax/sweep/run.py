"""run(file): a sweep from its YAML file to its results, or on from where it stopped."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rdro_jax.config import check_inputs
from rdro_jax.errors import ConfigError, RestartWanted
from rdro_jax.run_files import dotted
from rdro_jax.sweep.coordinator import Coordinator
from rdro_jax.sweep.elsewhere import make_executor
from rdro_jax.sweep.files import RECORD_FILE
from rdro_jax.sweep.journal import Journal
from rdro_jax.sweep.page import write_page
from rdro_jax.sweep.results import read_trials, write_results
from rdro_jax.sweep.space import Point
from rdro_jax.sweep.spec import MAY_CHANGE, LoadedSweep, differences, load_sweep
from rdro_jax.train.console import say
from rdro_jax.train.run import hold_folder, write_json
from rdro_jax.train.run import identity as run_identity

POLL_SECONDS = 0.2
RESULTS_SECONDS = 2.0
"""Between two looks at what the results on disk should say while trials go on."""


def run(file: str | Path, *, retry_failed: bool = False) -> Path:
    """Run the sweep that `file` describes, or go on with it; returns its folder.

    Raises: `RdroError` for what is wrong before the first trial, `RestartWanted` when it is asked to stop: every run
    here has saved its state then, jobs elsewhere go on, and the same command takes them up.
    """
    loaded = load_sweep(file)
    for config in loaded.bases():
        check_inputs(config)
    executor = make_executor(loaded)
    loaded.folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(loaded.folder):
        _check_same_sweep(loaded)
        journal = Journal(loaded)
        if retry_failed:
            say(f"{journal.retry_failed()} failed trials stand in line again")
        _coordinate(loaded, journal, Coordinator(loaded, journal, executor))
    return loaded.folder


def _coordinate(loaded: LoadedSweep, journal: Journal, coordinator: Coordinator) -> None:
    """Go round until nothing is left; the results on disk are never older than `RESULTS_SECONDS`."""
    say(f"{loaded.folder}: {loaded.planned} trials, {loaded.sweep.parallel} at a time; rdro sweep FILE --status shows")
    rows, looked = [], -RESULTS_SECONDS
    with _stop_asked() as stop:
        try:
            while coordinator.busy():
                if stop():
                    _stop(coordinator)
                    raise RestartWanted(f"{loaded.folder}: {stop()}: no run is left here; the same command goes on")
                if time.monotonic() - looked >= RESULTS_SECONDS:
                    before, rows, looked = rows, read_trials(loaded, journal), time.monotonic()
                    if rows != before:
                        write_results(loaded, rows)
                time.sleep(POLL_SECONDS)
        except ConfigError:
            _stop(coordinator)
            raise
        finally:
            rows = read_trials(loaded, journal)
            write_results(loaded, rows)
            write_page(loaded, rows, journal.importance())
    states = [row["state"] for row in rows]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"{loaded.folder}: {told}; report.html, results.jsonl, results.csv and best.yaml tell the rest")


def _stop(coordinator: Coordinator) -> None:
    while coordinator.stop():
        time.sleep(POLL_SECONDS)


@contextmanager
def _stop_asked() -> Iterator[Callable[[], str | None]]:
    """While it is open, SIGTERM and Ctrl-C are noted; the name of the first, or None."""
    received: list[str] = []

    def receive(number: int, _frame: object) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_same_sweep(loaded: LoadedSweep) -> None:
    """Write down what the sweep is, or raise ConfigError where its folder holds another one."""
    file, now = loaded.folder / RECORD_FILE, identity(loaded)
    if not file.exists():
        write_json(file, now)
        return
    changed = differences(json.loads(file.read_text()), now)
    if changed:
        raise ConfigError(
            f"output_dir: {loaded.folder} holds another sweep ({', '.join(changed)}); name another folder for a new "
            f"one, or set the old values to go on; {', '.join(MAY_CHANGE)} may change"
        )


def identity(loaded: LoadedSweep) -> Point:
    """What decides the numbers of a sweep, by dotted key: of its file, and of the config it starts from."""
    sweep = loaded.sweep.model_dump(mode="json", exclude={*MAY_CHANGE, "base", "output_dir", "set"})
    base, *others = map(run_identity, loaded.bases())
    point = dotted(sweep) | {f"base.{key}": value for key, value in base.items()}
    for number, other in enumerate(others, 1):
        point |= {f"base[{number}].{key}": value for key, value in other.items() if value != base.get(key)}
    return json.loads(json.dumps(point))
