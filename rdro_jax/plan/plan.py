"""make_plan(config, machine): what a run needs of a machine, compiled for it or counted."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rdro_jax.config import Config
from rdro_jax.models import ModelConfig, load_model_config, load_preset
from rdro_jax.models.backends import suited_backend
from rdro_jax.models.flops import StepFlops, step_flops
from rdro_jax.parallel import Placed, check_groups, check_rows, layout, make_mesh
from rdro_jax.plan.compiled import Compiled, OutOfMemory, compile_step
from rdro_jax.plan.devices import make_devices
from rdro_jax.plan.estimate import SIZES, Parts, abstract_mesh, estimate, plan_state
from rdro_jax.plan.topology import Topology
from rdro_jax.train.policy import computing_as


class Plan(NamedTuple):
    """What one run needs of one machine; bytes are per device."""

    topology: Topology
    config: Config
    model: ModelConfig
    mesh: dict[str, int]
    params: list[Placed]
    """What is trained, and where it lies."""
    frozen: list[Placed]
    """The model beside its adapters; empty where all is trained."""
    parts: Parts
    """The peak by part, counted."""
    compiled: Compiled | None
    """The compiler's figures; None where none was asked, or the program does not fit."""
    needed: float
    """Bytes of the peak: the compiler's where it was asked, also where it refused, else the estimate."""
    flops: StepFlops

    @property
    def fits(self) -> bool:
        """Whether a device has the bytes."""
        return self.needed <= self.topology.device.memory

    @property
    def times(self) -> dict[str, float]:
        """Least seconds of a step by what bounds it: matrix products, memory, links. The longest is the roofline."""
        device, size = self.topology.device, SIZES[self.model.compute_dtype]
        weights = sum(math.prod(place.shape) for place in self.frozen or self.params)
        passes = (2 if self.model.remat in ("none", "dots") else 3) * self.config.num_microbatches
        state = 2 * (self.parts.parameters + self.parts.optimizer + self.parts.gradients) + self.parts.frozen
        moved = (
            state + passes * weights * size / self.mesh["tensor"] + 2 * self.parts.kept * self.config.num_microbatches
        )
        times = {
            "compute": self.flops.executed / self.topology.num_devices / device.flops,
            "memory": moved / device.bandwidth,
        }
        if self.compiled is not None:
            sent = sum(traffic.sent for traffic in self.compiled.collectives.values())
            times["links"] = sent / device.links
        return times

    @property
    def mfu_bound(self) -> float:
        """Model FLOPs utilisation that a step at its roofline has."""
        return self.flops.model / self.topology.num_devices / self.topology.device.flops / max(self.times.values())


def make_plan(config: Config, topology: Topology, *, compiling: bool = True) -> Plan:
    """The plan of a run of `config` on a machine; compiled by the machine's own compiler, or counted only.

    Raises: ConfigError where mesh, model and batch do not divide, or the compiler is not installed.
    """
    if topology.platform == "tpu":
        check_groups(config.mesh, topology.num_devices, topology.slices)
    mesh = (
        make_mesh(config.mesh, make_devices(topology))
        if compiling
        else abstract_mesh(config.mesh, topology.num_devices)
    )
    check_rows(mesh, config.global_batch_size, config.num_microbatches)  # pyright: ignore[reportArgumentType]
    model = planned_model(config, topology.platform, mesh.shape["context"])
    state, batch = plan_state(config, model, mesh)
    parts, compiled = estimate(config, model, topology.platform, mesh, state, batch), None
    needed: float = parts.peak
    if compiling:
        try:
            compiled = compile_step(config, model, mesh)  # pyright: ignore[reportArgumentType]
            needed = compiled.peak
        except OutOfMemory as refusal:
            needed = refusal.needed
    seq = config.data.max_length
    flops = step_flops(model, config.global_batch_size * seq, seq, config.model.lora)
    params, frozen = (
        layout(tree, jax.tree.map(lambda leaf: leaf.sharding, tree)) for tree in (state.params, state.frozen)
    )
    return Plan(topology, config, model, dict(mesh.shape), params, frozen, parts, compiled, needed, flops)


def planned_model(config: Config, platform: str, context: int) -> ModelConfig:
    """The architecture of `model.path`, a folder with config.json or a preset, computing on rows cut in so many."""
    path = Path(config.model.path)
    model = computing_as(load_preset(path) if path.suffix == ".yaml" else load_model_config(path), config.model)
    if model.attention != "auto":
        return model
    backend = suited_backend(model, config.data.max_length // context, platform)
    return dataclasses.replace(model, attention=backend)


def spelled(place: Placed, mesh: dict[str, int]) -> str:
    """The mesh axes that part each dimension of an array, such as `-, fsdp*context, tensor`."""
    words = []
    for axes in place.spec:
        named = (axes,) if isinstance(axes, str) else axes or ()
        words.append("*".join(axis for axis in named if mesh[axis] > 1) or "-")
    return ", ".join(words) if set(words) - {"-"} else "whole"


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: what was asked, where everything lies, and every figure."""
    data, compiled = plan.config.data, plan.compiled
    return {
        "topology": plan.topology.name,
        "devices": plan.topology.num_devices,
        "model": plan.config.model.path,
        "mesh": plan.mesh,
        "rows": plan.config.global_batch_size,
        "row_tokens": data.max_length,
        "num_microbatches": plan.config.num_microbatches,
        "remat": plan.model.remat,
        "attention": plan.model.attention,
        "fits": plan.fits,
        "peak_bytes": plan.needed,
        "memory_bytes": None if math.isinf(plan.topology.device.memory) else plan.topology.device.memory,
        "estimate": plan.parts._asdict() | {"peak": plan.parts.peak},
        "compiled": compiled
        and compiled._asdict() | {"collectives": {k: t._asdict() for k, t in compiled.collectives.items()}},
        "flops": plan.flops._asdict(),
        "seconds": {name: None if math.isnan(time) else time for name, time in plan.times.items()},
        "mfu_bound": None if math.isnan(plan.mfu_bound) else plan.mfu_bound,
        "layout": [place._asdict() | {"spec": spelled(place, plan.mesh)} for place in plan.params + plan.frozen],
    }
