"""What a step changes: parameters, optimizer state, running statistics, the step counter; and where each lies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from rdro_jax.losses import LossFunction
from rdro_jax.parallel import param_shardings, replicated


class TrainState(NamedTuple):
    """Everything a checkpoint of a run holds besides the data position, which the step counter implies."""

    step: Int[Array, ""]
    """Optimizer steps done."""
    params: Any
    opt_state: Any
    running: Any = ()
    """Running statistics of the loss (BCO's shift); () for most."""


def init_state(params: Any, optimizer: optax.GradientTransformation, loss: LossFunction) -> TrainState:
    """State before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), loss.init_running())


def state_items(state: TrainState) -> dict[str, Any]:
    """The parts of a state as a checkpoint's items; parts without arrays, which it could not hold, are left out."""
    return {name: part for name, part in state._asdict().items() if jax.tree.leaves(part)}


def state_shardings(
    abstract_params: Any, optimizer: optax.GradientTransformation, loss: LossFunction, mesh: Mesh
) -> TrainState:
    """Sharding of every leaf of the state: moments lie where their parameter lies, the rest is replicated.

    Pinned on every jit that makes a state: left to itself the compiler puts every moment on device 0.
    """
    params = param_shardings(abstract_params, mesh)
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer, loss), abstract_params)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    running = jax.tree.map(lambda _: replicated(mesh), abstract.running)
    return abstract._replace(step=replicated(mesh), params=params, opt_state=opt_state, running=running)
