"""The train step as a program: lowered for arrays or for shapes alone, so that a plan compiles what a run runs."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from rdro_jax.batch import Batch
from rdro_jax.config import Config
from rdro_jax.losses import Loss
from rdro_jax.models import abstract_params
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import rows_sharding
from rdro_jax.train.policy import Policy
from rdro_jax.train.state import TrainState, init_state, offloaded, state_shardings
from rdro_jax.train.step import Metrics, make_train_step
from rdro_jax.train.trained import step_params, trained_shapes

Scalars = dict[str, Any]
"""Numbers of a run that its step takes as an argument, float32: runs that differ in them only share the program."""
LEARNING_RATE = "learning_rate"


def lower_step(
    config: Config, policy: Policy, loss: Loss, num_steps: int, state: TrainState, batch: Batch
) -> jax.stages.Lowered:
    """The step (state, batch, scalars) of a run of `num_steps`, for arrays or shapes, lying where their shardings say.

    The state is donated, and the new one lies where the old one lay. `step_scalars` gives the third argument.
    """
    assemble, parts = partial(step_params, config), config.num_microbatches
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def train_step(state: TrainState, batch: Batch, scalars: Scalars) -> tuple[TrainState, Metrics]:
        numbers = dict(scalars)
        traced = dataclasses.replace(config.optimizer, learning_rate=numbers.pop(LEARNING_RATE))
        step = make_train_step(
            policy.logps,
            loss.with_scalars(numbers),
            make_optimizer(traced, num_steps),
            num_microbatches=parts,
            assemble=assemble,
            skip_grad_norm=config.optimizer.skip_grad_norm,
        )
        return (offloaded(step, shardings) if config.optimizer.offload else step)(state, batch)

    everywhere = NamedSharding(policy.mesh, PartitionSpec())
    scalars = {name: _array((), jnp.float32, everywhere) for name in _numbers(config, loss)}
    return jax.jit(train_step, out_shardings=(shardings, None), donate_argnums=0).lower(state, batch, scalars)


def step_scalars(config: Config, policy: Policy, loss: Loss) -> Scalars:
    """The scalars of a run, on all devices."""
    everywhere = NamedSharding(policy.mesh, PartitionSpec())
    make = lambda value: jax.make_array_from_callback((), everywhere, lambda _: np.float32(value))  # noqa: E731
    return {name: make(value) for name, value in _numbers(config, loss).items()}


def _numbers(config: Config, loss: Loss) -> dict[str, float]:
    return {LEARNING_RATE: config.optimizer.learning_rate, **loss.scalars()}


def program_key(config: Config) -> Config:
    """A config for all runs with its program: those that differ from it in scalars, seed and folder only.

    The reverse does not hold: two of them may differ in what changes no program, such as how often metrics are logged.
    """
    # What a loss takes from the data is a number by the time it is traced, but for each prompt's own.
    known = {name: 0.0 for name in config.loss.traced if getattr(config.loss, name) != "prompt"}
    if "sft_weight" in known:
        known["sft_weight"] = float(config.loss.sft_weight > 0)  # pyright: ignore[reportAttributeAccessIssue]
    same = {"loss": config.loss.with_scalars(known), "seed": 0, "output_dir": ""}
    return config.model_copy(update=same | {"optimizer": dataclasses.replace(config.optimizer, learning_rate=1.0)})


def abstract_state(config: Config, policy: Policy, loss: Loss, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes, types and shardings of a run's state; no array is made."""
    trained = trained_shapes(config, policy)
    shapes = jax.eval_shape(lambda p: init_state(p, loss, optimizer), trained)
    state = placed(shapes, state_shardings(trained, loss, optimizer, policy.mesh, offload=config.optimizer.offload))
    if config.model.lora is None:
        return state
    return state._replace(
        frozen=placed(abstract_params(policy.model, dtype=config.model.dtype), policy.param_shardings)
    )


def abstract_batch(config: Config, policy: Policy) -> Batch:
    """Shapes, types and shardings of the global batches that a run's loader makes."""
    where, rows = rows_sharding(policy.mesh), config.global_batch_size
    of_tokens = lambda kind: _array((rows, config.data.max_length), kind, where)  # noqa: E731
    of_slots = lambda kind: _array((rows, config.data.slots), kind, where)  # noqa: E731
    batch = Batch(
        tokens=of_tokens(jnp.int32),
        positions=of_tokens(jnp.int32),
        segment_ids=of_tokens(jnp.int32),
        loss_mask=of_tokens(jnp.bool_),
        desirable=of_slots(jnp.bool_),
        weight=of_slots(jnp.float32),
        reference_logps=of_slots(jnp.float32),
    )
    return batch._replace(
        prompt_alpha=of_slots(jnp.float32) if config.loss.needs_prompt_alpha else None,
        mismatched=batch if config.loss.needs_mismatched else None,
    )


def _array(shape: tuple[int, ...], kind: Any, where: Sharding) -> Any:
    return jax.ShapeDtypeStruct(shape, kind, sharding=where)


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes and types as they are, each with where it lies."""
    return jax.tree.map(lambda leaf, where: _array(leaf.shape, leaf.dtype, where), shapes, shardings)
