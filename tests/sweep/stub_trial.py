"""Stands in for `rdro train` where a sweep is tested: steps, saves, goes on; 30 ms instead of 10 s.

Every step is noted in `steps.log`, so that a test can see what was done twice. The parameters decide the metrics.
"""

import fcntl
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

STEPS, SAVE_EVERY, SECONDS = 12, 2, float(os.environ.get("STUB_SECONDS", "0.01"))


def main(words: list[str]) -> int:
    values = {key: json.loads(value) for key, value in (word.split("=", 1) for word in words[2:])}
    folder = Path(values["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".stub_lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("rdro: error: two processes in one folder")
            return 2
        return train(folder, values)


def train(folder: Path, values: dict) -> int:
    """Go on from checkpoint.json; `max_steps` or a learning rate above 900 is an exit code to end with at step 3."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    saved = folder / "checkpoint.json"
    done = json.loads(saved.read_text()) if saved.exists() else 0
    rate = values["optimizer.learning_rate"]
    fault = int(max(values.get("max_steps", 0), rate))
    store = Path(values["reference.store"])
    if not store.exists():
        with (store.parent / "computed.log").open("a") as log:
            log.write("reference\n")
        time.sleep(5 * SECONDS)
        store.mkdir(exist_ok=True)
    if not done:
        compile_step(store.parent / "compilation_cache", values)
    for step in range(done + 1, STEPS + 1):
        time.sleep(SECONDS * (0.5 + random.random()))
        if step == 3 and fault > 900 and not (folder.parent / "mended").exists():
            print(f"rdro: error: max_steps: fault {fault}")
            return fault - 900
        write(folder / "steps.log", f"{step}\n", "a")
        write(folder / "metrics.jsonl", json.dumps({"step": step, "loss": rate * 1e6 + 1 / step}) + "\n", "a")
        if step % SAVE_EVERY == 0 or asked:
            write(saved.with_suffix(".tmp"), str(step), "w")
            saved.with_suffix(".tmp").replace(saved)
        if asked:
            return 42
    value = abs(rate * 1e6 - 3) + values.get("seed", 0) / 100
    write(folder / "result.tmp", json.dumps({"eval_loss": value, "loss": 1.0}), "w")
    (folder / "result.tmp").replace(folder / "result.json")
    return 0


def compile_step(cache: Path, values: dict) -> None:
    """A program for each loss, kept when it is compiled; who comes meanwhile compiles it too."""
    loss = values.get("loss.name", "rdro")
    if not (cache / loss).exists():
        time.sleep(5 * SECONDS)
        cache.mkdir(exist_ok=True)
        write(cache / loss, "compiled\n", "a")


def write(path: Path, text: str, mode: str) -> None:
    with path.open(mode) as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
