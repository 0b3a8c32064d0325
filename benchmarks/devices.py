"""The sharded step over simulated devices: what splitting parameters, moments and rows costs beside one device.

Devices are threads of one machine. As many as it has cores share the work; beyond that there is nothing to gain, and
the CPU-seconds of a step show what the exchange costs. The global batch is the same for all.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from benchmarks.beside_trl.gate import Gate, Worker
from benchmarks.sizes import Size
from benchmarks.step import batch_of, make_examples, make_model
from rdro_jax.config import Config
from rdro_jax.models import abstract_params, init_params
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import make_mesh, rows_sharding
from rdro_jax.train import init_state
from rdro_jax.train.policy import policy_of
from rdro_jax.train.program import lower_step, step_scalars
from rdro_jax.train.state import state_shardings

ROOT = Path(__file__).parent.parent
NUM_STEPS = 1000
"""Length of the schedule, of which only the beginning is run."""


def bench_devices(size: Size) -> dict[str, dict[str, float]]:
    """Medians of a step over 1, 2, ... devices: processes of their own that take turns, half as deep as the others."""
    size = dataclasses.replace(size, layers=max(1, size.layers // 2))
    workers = {count: start_worker(size, count) for count in size.devices}
    for worker in workers.values():
        worker.step()  # warms up, unmeasured
    turns = [{count: worker.step() for count, worker in workers.items()} for _ in range(size.repeats)]
    for worker in workers.values():
        worker.close()
    return {
        f"{count} devices": {
            "seconds": median(turn[count]["seconds"] for turn in turns),
            "cpu_seconds": median(turn[count]["cpu_seconds"] for turn in turns),
            "tokens_per_cpu_second": size.rows * size.seq / median(turn[count]["cpu_seconds"] for turn in turns),
            "state_bytes_of_a_device": turns[0][count]["state_bytes"],
            "loss_after_all": turns[-1][count]["loss"],
        }
        for count in workers
    }


def start_worker(size: Size, count: int) -> Worker:
    """A process of so many devices that has compiled its step: their number is settled before jax starts."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.devices", json.dumps(dataclasses.asdict(size))]
    return Worker(command, {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path})


def compile_sharded(size: Size) -> tuple[int, Callable[[], Any]]:
    """Bytes of the state on one device, and a function that makes the next step of `rdro train`; its metrics."""
    config = config_of(size)
    policy, loss = policy_of(make_model(size), make_mesh(config.mesh)), config.loss.resolve(0.5)
    optimizer = make_optimizer(config.optimizer, NUM_STEPS)
    shardings = state_shardings(abstract_params(policy.model), loss, optimizer, policy.mesh)
    begin = lambda: init_state(init_params(policy.model, jax.random.key(size.seed)), loss, optimizer)  # noqa: E731
    state = jax.jit(begin, out_shardings=shardings)()
    rows = batch_of(make_examples(size, np.full(size.rows, size.seq)), [[row] for row in range(size.rows)], size)
    batch = jax.device_put(rows, rows_sharding(policy.mesh))
    program = lower_step(config, policy, loss, NUM_STEPS, state, batch).compile()
    scalars = step_scalars(config, policy, loss)

    def step() -> Any:
        nonlocal state  # donated
        state, metrics = program(state, batch, scalars)
        return jax.block_until_ready(metrics)

    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)), step


def config_of(size: Size) -> Config:
    """A run of this size with all devices along fsdp; none of the files it names is read."""
    told = {
        "output_dir": "runs/bench",
        "global_batch_size": size.rows,
        "model": {"path": "models/none"},
        "data": {"train": "none.jsonl", "max_length": size.seq, "slots": 1},
        "loss": {"name": "rdro", "alpha": 0.5},
    }
    return Config.model_validate_json(json.dumps(told))


def main(size: Size) -> None:
    """Step when told to, until the gate closes."""
    gate = Gate()
    state_bytes, step = compile_sharded(size)
    gate.step_done()
    while True:
        metrics = step()
        gate.step_done(state_bytes=state_bytes, loss=float(metrics["loss"] / metrics["weight"]))


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    main(Size(**told | {name: tuple(value) for name, value in told.items() if isinstance(value, list)}))
