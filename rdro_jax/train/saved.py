"""The policy in a run's checkpoint."""

from pathlib import Path

import jax
from jax.sharding import Mesh

from rdro_jax.checkpoint import find_fault, list_steps, load_items
from rdro_jax.config import Config
from rdro_jax.errors import CheckpointError, ConfigError
from rdro_jax.models import Params
from rdro_jax.parallel import MeshConfig, make_mesh, param_shardings
from rdro_jax.train.policy import Policy
from rdro_jax.train.program import placed
from rdro_jax.train.state import TrainState
from rdro_jax.train.trained import load_base, merged_params, trained_shapes


def run_mesh(config: Config) -> Mesh:
    """The run's mesh; on a machine of other devices, whatever it has."""
    try:
        return make_mesh(config.mesh)
    except ConfigError:
        return make_mesh(MeshConfig())


def sound_step(run: Path, step: int | None) -> int:
    """`step`, or that of the newest checkpoint. Raises: `CheckpointError` where there is none, or it is damaged."""
    steps = list_steps(run)
    if not steps or (step is not None and step not in steps):
        wanted = "any checkpoint" if step is None else f"checkpoint-{step}"
        raise CheckpointError(f"{run}: holds no {wanted}; complete checkpoints: {steps or 'none'}")
    step = steps[-1] if step is None else step
    fault = find_fault(run, step)
    if fault is not None:
        raise CheckpointError(f"{fault}; take another step: {', '.join(str(s) for s in steps if s != step) or 'none'}")
    return step


def saved_trained(run: Path, config: Config, policy: Policy, step: int) -> Params:
    """What the run trains, as a checkpoint has it: all parameters, or adapters."""
    shapes = trained_shapes(config, policy)
    return load_items(run, step, {"params": placed(shapes, param_shardings(shapes, policy.mesh))})["params"]


def with_base(config: Config, policy: Policy, trained: Params, step: int) -> Params:
    """The policy as a model of its own, adapters merged."""
    frozen = () if config.model.lora is None else load_base(config, policy)
    return merged_params(config, TrainState(jax.numpy.int32(step), trained, (), frozen=frozen))
