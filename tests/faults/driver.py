"""Runs of the real command line in processes of their own, to be killed, frozen, starved and started again.

They are forked off a process that has imported everything, which spares each of them four seconds, and share a
compilation cache. What is compared afterwards: every array of the last checkpoint with what was saved beside them, and
the metrics without their times.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from tiny import write_folder

from rdro_jax.checkpoint import checkpoint_path, list_steps
from rdro_jax.run_files import read_metrics

# Read by the C library as the forking process starts: heaps of single threads fill up at moments of their own, by as
# much as a soak may grow.
os.environ.setdefault("MALLOC_ARENA_MAX", "1")
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rdro_jax.cli.entry", "rdro_jax.train", "rdro_jax.export", "grain", "transformers"])
PATIENCE = 600.0
"""Seconds after which a process that was to end by itself counts as hanging."""
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
RUN = """\
output_dir: {run}
num_train_epochs: 4
global_batch_size: 8
model: {{path: {home}/model, remat: none}}
reference: {{store: {home}/store}}
data: {{train: {home}/train.jsonl, eval: {home}/eval.jsonl, max_length: 32, slots: 4, prepared: {home}/prepared}}
loss: {{name: bco}}
optimizer: {{learning_rate: 1.0e-2}}
checkpoint: {{save_steps: 3}}
"""
"""Twelve steps. BCO, whose running shift is a part of the state as parameters are."""
STEPS = 12


class Home(NamedTuple):
    """A folder with a model, rows and the config of a run in `run`."""

    path: Path
    run: Path

    @property
    def config(self) -> str:
        """The config file, written if it is not there."""
        file = self.run.with_suffix(".yaml")
        file.write_text(RUN.format(home=self.path, run=self.run))
        return str(file)


def make_home(folder: Path) -> Path:
    """The model and the rows that all runs of a session share."""
    folder.mkdir()
    return write_folder(folder)


class Runs(NamedTuple):
    """The processes of one run."""

    processes: list[Any]
    logs: list[Path]

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit codes of all of them; of a signal, its negative number. Ends those that hang, and fails."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [process for process in self.processes if process.exitcode is None]
        for process in hanging:
            process.kill()
        assert not hanging, f"{len(hanging)} of {len(self.processes)} still run after {seconds:.0f} s:\n{self.told()}"
        return [process.exitcode for process in self.processes]

    def send(self, number: int, which: int = 0) -> None:
        """Send a signal to one of them."""
        os.kill(self.processes[which].pid, number)

    def told(self) -> str:
        """What they wrote."""
        return "\n".join(log.read_text() for log in self.logs)


def start(
    *words: str,
    logs: Path,
    processes: int = 1,
    devices: int = 1,
    environ: Mapping[str, str] | None = None,
    inject: Callable[[], object] | None = None,
) -> Runs:
    """`rdro WORDS` in as many processes, each with as many simulated devices; `inject` is called before it."""
    cluster = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    started, files = [], []
    for number in range(processes):
        own = {"XLA_FLAGS": f"{QUICK_COMPILATION} --xla_force_host_platform_device_count={devices}", **(environ or {})}
        own |= cluster | {"JAX_PROCESS_ID": str(number)} if processes > 1 else {}
        files.append(logs / f"{time.monotonic_ns()}-{number}.log")
        process = PROCESSES.Process(target=_child, args=(list(words), files[-1], own, inject), daemon=True)
        process.start()
        started.append(process)
    return Runs(started, files)


def _child(words: list[str], log: Path, environ: dict[str, str], inject: Callable[[], object] | None) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.update(environ)
    from rdro_jax.cli import main

    if inject is not None:
        inject()
    sys.exit(main(words))


def train(home: Home, *overrides: str, **how: Any) -> Runs:
    """`rdro train` of a home's config."""
    return start("train", home.config, *overrides, logs=home.run.parent, **how)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def until(what: Callable[[], Any], runs: Runs, seconds: float = PATIENCE) -> Any:
    """What `what` gives once it gives something, while the processes live."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        ended = [process.exitcode for process in runs.processes if process.exitcode is not None]
        assert not ended, f"ended with {ended} before the moment came:\n{runs.told()}"
        time.sleep(0.002)
    raise AssertionError(f"the moment did not come in {seconds:.0f} s:\n{runs.told()}")


def logged(home: Home, step: int) -> Callable[[], bool]:
    """Whether metrics of a step are written."""
    file = home.run / "metrics.jsonl"
    return lambda: file.exists() and any(line["step"] >= step for line in read_metrics(file))


def saving(home: Home) -> Callable[[], bool]:
    """Whether a checkpoint is being written."""
    return lambda: any(home.run.glob("checkpoint-*tmp*"))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without times."""
    times, lines = ("time/", "throughput/"), read_metrics(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith(times)} for line in lines]


def state(run: Path, step: int | None = None) -> str:
    """Hash over every array of a checkpoint (the last one), by its path, type and bytes, and over what lies beside."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    step = list_steps(run)[-1] if step is None else step
    folder = str(checkpoint_path(run, step))
    saved = ocp.checkpointables_metadata(folder)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved.metadata)
    # What a run that stopped after this step owed is made up for beside the checkpoint, which stays as it is.
    beside = {name: value for name, value in saved.custom_metadata.items() if name != "owed"}
    digest = xxhash.xxh3_128(repr((step, beside)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(ocp.load_checkpointables(folder, wanted)):
        numbers = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {numbers.dtype} {numbers.shape}".encode())
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()


def same(left: Path, right: Path) -> bool:
    """Whether two runs ended alike: the state bit for bit, the metrics line for line, the exported weights."""
    weights = [(run / "model.safetensors").read_bytes() for run in (left, right)]
    return metrics(left) == metrics(right) and state(left) == state(right) and weights[0] == weights[1]


def assert_same_run(left: Home, right: Home, tolerance: float = 1e-5) -> float:
    """Fails unless both had the same batches and losses, whatever they ran on; the largest difference of a loss."""
    ours, theirs = metrics(left.run), metrics(right.run)
    for name in ("step", "counts/chosen", "counts/rejected", "lengths/chosen", "lengths/rejected", "epoch", "padding"):
        assert [line.get(name) for line in ours] == [line.get(name) for line in theirs], name
    gaps = [abs(line["loss"] - other["loss"]) for line, other in zip(ours, theirs, strict=True) if "loss" in line]
    assert max(gaps) <= tolerance, gaps
    return max(gaps)
