"""The real train step, compiled for a machine that is not there; nothing is run and no weight exists."""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rdro_jax.config import Config
from rdro_jax.losses import Loss
from rdro_jax.models import ModelConfig
from rdro_jax.optim import make_optimizer
from rdro_jax.plan.hlo import Traffic, collectives
from rdro_jax.train.policy import policy_of
from rdro_jax.train.program import abstract_batch, abstract_state, lower_step

SOME_STEPS = 1000
"""Length of the learning rate's schedule, which changes constants of the program and no size."""

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"
_TOO_MUCH = (
    re.compile(rf"[Uu]sed {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


class OutOfMemory(Exception):
    """The compiler found no way to keep the program within a device's memory."""

    def __init__(self, needed: float, available: float):
        """Both in bytes per device."""
        super().__init__(needed, available)
        self.needed, self.available = needed, available


class Compiled(NamedTuple):
    """What a compiler says of the step; bytes are per device."""

    peak: int
    """Bytes at the moment the most are in use: what has to fit. Of a CPU's program arguments and temporaries."""
    arguments: int
    """State and batch."""
    temporaries: int
    """Everything else, as if nothing of it shared a place with the donated state."""
    code: int
    """The program itself."""
    seconds: float
    """Of lowering and compiling, here."""
    collectives: dict[str, Traffic]


def compile_step(config: Config, model: ModelConfig, mesh: Mesh) -> Compiled:
    """The step of a run of `config` on an architecture, compiled for the devices of a mesh.

    Raises: OutOfMemory where the compiler cannot make it fit, ConfigError where the mesh does not divide the model.
    """
    policy, loss = policy_of(model, mesh), settled(config.loss)
    num_steps = config.max_steps or SOME_STEPS
    optimizer = make_optimizer(config.optimizer, num_steps)
    state, batch = abstract_state(config, policy, loss, optimizer), abstract_batch(config, policy)
    start = time.monotonic()
    lowered = lower_step(config, policy, loss, num_steps, state, batch)
    program = _compile(lowered)
    seconds = time.monotonic() - start
    sizes: Any = program.memory_analysis()
    # The CPU's compiler leaves temporaries out of its peak.
    whole = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    return Compiled(
        peak=whole if mesh.devices.flat[0].platform == "cpu" else sizes.peak_memory_in_bytes,
        arguments=sizes.argument_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        seconds=seconds,
        collectives=collectives(program.as_text() or ""),
    )


def settled(loss: Loss) -> Loss:
    """The loss with a number where the data would give one: any, for it changes no size."""
    if getattr(loss, "alpha", None) == "estimate":
        loss = dataclasses.replace(loss, alpha=0.5)  # pyright: ignore[reportCallIssue]
    return loss.resolve(0.5)


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        raise needed from None


def out_of_memory(message: str) -> OutOfMemory | None:
    """What a compiler's message says of needed and available memory; None where it is about something else.

    >>> out_of_memory("RESOURCE_EXHAUSTED: the total memory required (43.99G) exceeds available HBM (15.75G).").needed
    47233902837.76
    """
    for pattern in _TOO_MUCH:
        if found := pattern.search(message):
            needed, its_unit, available, unit = found.groups()
            return OutOfMemory(float(needed) * _UNITS[its_unit], float(available) * _UNITS[unit])
    return None
