"""What a step changes: parameters, optimizer state, running statistics, the step counter; and where each lies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from rdro_jax.batch import Batch
from rdro_jax.losses import LossBase
from rdro_jax.parallel import on_host, param_shardings, replicated


class TrainState(NamedTuple):
    """Everything a checkpoint of a run holds besides the data position, which the step counter implies.

    >>> import jax.numpy as jnp
    >>> state = TrainState(jnp.int32(3), params={"w": jnp.ones(2)}, opt_state=())
    >>> int(state.step), state.running
    (3, ())
    """

    step: Int[Array, ""]
    """Optimizer steps done."""
    params: Any
    opt_state: Any
    running: Any = ()
    """Running statistics of the loss (BCO's shift); () for most."""
    frozen: Any = ()
    """Parameters that are read and never changed (the base of adapters); () where all are trained."""


def init_state(params: Any, loss: LossBase, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first step.

    >>> import jax, optax, rdro_jax as rj
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> params = rj.init_params(rj.ModelConfig("llama", vocab_size=32, **shape), jax.random.key(0))
    >>> state = init_state(params, rj.losses.BCO(), optax.adamw(1e-6))
    >>> int(state.step), sorted(state.running)
    (0, ['delta', 'examples'])
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), loss.init_running())


def state_items(state: TrainState) -> dict[str, Any]:
    """The parts of a state as a checkpoint's items.

    Left out are parts without arrays, which a checkpoint could not hold, and what is frozen: the model folder has it.
    """
    return {name: part for name, part in state._replace(frozen=())._asdict().items() if jax.tree.leaves(part)}


def state_shardings(
    abstract_params: Any,
    loss: LossBase,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    offload: bool = False,
) -> TrainState:
    """Sharding of every leaf of the state: moments lie where their parameter lies, the rest is replicated.

    With `offload` the moments lie in host memory. Raises: ConfigError where the platform cannot.

    Pinned on every jit that makes a state: left to itself the compiler puts every moment on device 0.
    """
    params = param_shardings(abstract_params, mesh)
    abstract = jax.eval_shape(lambda p: init_state(p, loss, optimizer), abstract_params)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        on_host(params) if offload else params,
        transform_non_params=lambda _: replicated(mesh),
    )
    running = jax.tree.map(lambda _: replicated(mesh), abstract.running)
    return abstract._replace(step=replicated(mesh), params=params, opt_state=opt_state, running=running)


def offloaded(
    step: Callable[[TrainState, Batch], tuple[TrainState, Any]], shardings: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
    """`step` on a state whose optimizer part lies in host memory between steps, as `shardings` say."""
    on_device = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings.opt_state)

    def offloaded_step(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
        state, metrics = step(state._replace(opt_state=jax.device_put(state.opt_state, on_device)), batch)
        return state._replace(opt_state=jax.device_put(state.opt_state, shardings.opt_state)), metrics

    return offloaded_step
