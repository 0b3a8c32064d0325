"""What would make a run fit a machine: the smallest change of its config that does, by the estimate."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from rdro_jax.config import Config, ModelSource
from rdro_jax.errors import ConfigError
from rdro_jax.models import LoraConfig
from rdro_jax.optim import OptimizerConfig
from rdro_jax.parallel import MeshConfig
from rdro_jax.parallel.hardware import GIB
from rdro_jax.plan.estimate import abstract_mesh, estimate, plan_state, row_shards
from rdro_jax.plan.plan import Plan
from rdro_jax.train.policy import computing_as

MARGIN = 0.95
"""Share of the memory that advice fills: the estimate is good to a tenth, and the compiler's word counts."""


class Change(NamedTuple):
    """Some keys of a config, and what they change in it."""

    keys: str
    """As on the command line; empty for no change."""
    values: dict[str, Any]


def advise(plan: Plan) -> str:
    """One line: keys to set, or how many such devices the state alone wants."""
    # Micro-batches change no state: its shapes are looked up once for each mesh and model.
    states = functools.cache(lambda mesh, model, optimizer: _state(plan, mesh, model, optimizer))
    for changes in _candidates(plan):
        config = plan.config.model_copy(update={key: new for change in changes for key, new in change.values.items()})
        peak = _peak(config, plan.topology.platform, states(config.mesh, config.model, config.optimizer))
        if peak is not None and peak <= MARGIN * plan.topology.device.memory:
            return f"by the estimate {peak / GIB:.2f} GiB with {' '.join(filter(None, (c.keys for c in changes)))}"
    parts = plan.parts
    state = (parts.parameters + parts.optimizer + parts.frozen + parts.gradients) * plan.topology.num_devices
    wanted = math.ceil(state / (MARGIN * plan.topology.device.memory))
    return (
        "no mesh, micro-batches, precision or adapters make it fit; parameters, moments and gradients alone want "
        f"{wanted} such devices"
    )


def _candidates(plan: Plan) -> Iterator[tuple[Change, ...]]:
    """Combinations of changes, what costs least first: recomputation, micro-batches, mesh, precision, adapters."""
    combinations = itertools.product(_precisions(plan.config), _meshes(plan), _counts(plan.config))
    return (changes for changes in combinations if any(change.values for change in changes))


def _precisions(config: Config) -> list[Change]:
    """What is computed again, kept in half the bytes, or not trained at all."""
    now, optimizer = config.model, dataclasses.replace(config.optimizer, mu_dtype="bfloat16")
    full = dataclasses.replace(now, remat="full")
    small, adapters = dataclasses.replace(full, dtype="bfloat16"), LoraConfig()
    again = [] if now.remat == "full" else ["model.remat=full"]
    half = [] if now.dtype == "bfloat16" else ["model.dtype=bfloat16"]
    moment = [] if config.optimizer == optimizer else ["optimizer.mu_dtype=bfloat16"]
    changes = [Change("", {}), Change(" ".join(again), {"model": full})] if again else [Change("", {})]
    if moment:
        changes.append(Change(" ".join(again + moment), {"model": full, "optimizer": optimizer}))
    if half:
        values = {"model": small, "optimizer": optimizer}
        changes.append(Change(" ".join(again + moment + half), values))
    if now.lora is None:
        keys = " ".join([*again, f"model.lora.r={adapters.r}", *half])
        changes.append(Change(keys, {"model": dataclasses.replace(small, lora=adapters)}))
    return changes


def _meshes(plan: Plan) -> list[Change]:
    """The config's own, then all devices along fsdp, then with heads divided as well; slices part fsdp."""
    slices = plan.topology.slices
    across = f" mesh.dcn_data=1 mesh.dcn_fsdp={slices}" if slices > 1 else ""
    devices, heads = plan.topology.num_devices, math.gcd(plan.model.n_heads, plan.model.n_kv_heads)
    changes = [Change("", {})]
    for tensor in (1, 2, 4, 8):
        if heads % tensor == 0 and devices % (tensor * slices) == 0:
            mesh = MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor, dcn_fsdp=slices)
            changes.append(Change(f"mesh.data=1 mesh.fsdp={mesh.fsdp} mesh.tensor={tensor}{across}", {"mesh": mesh}))
    return changes


def _counts(config: Config) -> list[Change]:
    """Numbers of micro-batches that divide the batch, from the config's own to one row each."""
    more = range(config.num_microbatches + 1, config.global_batch_size + 1)
    counts = [n for n in more if config.global_batch_size % n == 0]
    return [Change("", {}), *(Change(f"num_microbatches={n}", {"num_microbatches": n}) for n in counts)]


def _state(plan: Plan, mesh: MeshConfig, source: ModelSource, optimizer: OptimizerConfig) -> tuple[Any, ...] | None:
    """Model, mesh, state and batch; None where the mesh does not divide the model or the batch."""
    config = plan.config.model_copy(update={"mesh": mesh, "model": source, "optimizer": optimizer})
    model = computing_as(plan.model, source)
    model = dataclasses.replace(model, attention=plan.model.attention)
    try:
        abstract = abstract_mesh(mesh, plan.topology.num_devices)
        return model, abstract, *plan_state(config, model, abstract)
    except ConfigError:
        return None


def _peak(config: Config, platform: str, state: tuple[Any, ...] | None) -> int | None:
    """Bytes by the estimate; None where sizes do not divide."""
    if state is None or config.global_batch_size % (config.num_microbatches * row_shards(state[1])):
        return None
    return estimate(config, state[0], platform, *state[1:]).peak
