"""What a run leaves in its folder, by name; read without jax, by those who only look."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

CONFIG_FILE, ENVIRONMENT_FILE, DATA_REPORT_FILE = "config.yaml", "environment.json", "data_report.json"
LOSS_FILE = "loss.json"
"""The loss with what it took from the data filled in, its floor and its bound."""
ALPHA_FILE = "alpha.json"
"""alpha as estimated before the first step, with its interval."""
METRICS_FILE = "metrics.jsonl"
"""The truth about a run: a line per logging window, and one per evaluation with its figures under `eval_`."""
EVALUATIONS_FILE = "evaluations.jsonl"
"""What an evaluation says beside its figures: histograms of the log-ratio, the reliability curve; a line each."""
RESULT_FILE = "result.json"
"""The final metrics; the file says that the run is finished."""
SAMPLES_FILE = "samples.jsonl"
"""Completions to look at."""
LOCK_FILE, HOLDER_FILE = ".lock", ".lock_holder"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics file, each of a step; what is torn or damaged is left out, with a warning that names it."""
    return read_lines(path, lambda line: isinstance(line.get("step"), int))


def read_lines(path: Path, is_whole: Callable[[dict[str, Any]], bool] = lambda line: True) -> Iterator[dict[str, Any]]:
    """JSON objects of a file, one a line, of which `is_whole` holds.

    The last line may be torn: the process that wrote it was killed, or is at it. A damaged one costs no other line.
    """
    *lines, last = path.read_bytes().split(b"\n")
    for number, raw in enumerate((*lines, last), 1):
        try:
            line = json.loads(raw.decode())
        except ValueError:  # broken JSON or broken UTF-8
            line = None
        if isinstance(line, dict) and is_whole(line):
            yield line
        elif raw.strip():
            what = "torn" if number > len(lines) else "damaged"
            _warn(f"{path}:{number}: {what} line, left out")


@cache
def _warn(fault: str) -> None:
    """Once for each fault: a file may be looked at every second."""
    print(f"warning: {fault}", file=sys.stderr, flush=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move, after its bytes are on the disk: nobody ever meets half of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # several processes may write the same file
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def seal(told: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with the hash of themselves as `xxh3`: a flipped digit would be believed."""
    return {**told, "xxh3": _hash_values(told)}


def unseal(text: str | bytes) -> dict[str, Any] | None:
    """The values that were sealed and written as JSON; None where they are not as they were written."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    seal = values.pop("xxh3", None)
    return values if seal == _hash_values(values) else None


def _hash_values(told: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(told))  # keys are text then, tuples lists
    return xxhash.xxh3_128_hexdigest(json.dumps(as_read, sort_keys=True).encode())


def dotted(tree: Mapping[str, Any], prefix: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Leaves of nested sections by dotted key, an empty section being a leaf; with `lists`, of lists of sections too.

    >>> dotted({"loss": {"name": "rdro"}, "data": {"train": [{"path": "a"}]}})
    {'loss.name': 'rdro', 'data.train': [{'path': 'a'}]}
    >>> dotted({"data": {"train": [{"path": "a"}]}}, lists=True)
    {'data.train.0.path': 'a'}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if lists and isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))
        key = f"{prefix}{name}"
        flat |= dotted(value, f"{key}.", lists=lists) if isinstance(value, Mapping) and value else {key: value}
    return flat
