"""What a run trains: all parameters of the policy, or adapters beside parameters that stay as they are."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rdro_jax.batch import Batch
from rdro_jax.config import Config
from rdro_jax.errors import ConfigError
from rdro_jax.models import (
    Params,
    abstract_adapters,
    abstract_params,
    adapt,
    init_adapters,
    load_adapters,
    load_model,
    merge,
)
from rdro_jax.parallel import param_shardings
from rdro_jax.train.policy import Policy
from rdro_jax.train.state import TrainState


def trained_shapes(config: Config, policy: Policy) -> Any:
    """Shapes and types of what is trained."""
    if config.model.lora is None:
        return abstract_params(policy.model, dtype=config.model.dtype)
    return abstract_adapters(policy.model, config.model.lora)


def load_base(config: Config, policy: Policy) -> Params:
    """The model folder's parameters on their shards: with adapters frozen, else where training starts."""
    return load_model(config.model.path, dtype=config.model.dtype, shardings=policy.param_shardings)[0]


def start_adapters(config: Config, policy: Policy) -> Any:
    """Adapters of a new run on their shards: of the folder `model.lora.adapter`, else such that nothing changes.

    Raises: ConfigError where the folder was made with other settings than the run's, WeightError for a damaged one.
    """
    lora = config.model.lora
    assert lora is not None, "only a run with model.lora has adapters"
    shardings = param_shardings(abstract_adapters(policy.model, lora), policy.mesh)
    if lora.adapter is None:
        draw = jax.jit(lambda key: init_adapters(policy.model, lora, key), out_shardings=shardings)
        return draw(jax.random.key(config.seed))
    adapters, found = load_adapters(lora.adapter, policy.model, shardings=shardings)
    for name in ("r", "lora_alpha", "use_rslora", "target_modules"):
        got, there = getattr(lora, name), getattr(found, name)
        if got != there and (name != "target_modules" or set(got) != set(there)):
            raise ConfigError(f"model.lora.{name}: got {got}; {lora.adapter} was made with {there}")
    return adapters


def starting_params(config: Config, policy: Policy) -> Params:
    """Parameters of the starting policy as `forward` takes them; the reference, where no other is named."""
    base = load_base(config, policy)
    if config.model.lora is None or config.model.lora.adapter is None:
        return base
    return adapt(base, start_adapters(config, policy), config.model.lora)


def policy_params(config: Config, state: TrainState) -> Params:
    """Parameters of the policy as `forward` takes them."""
    return state.params if config.model.lora is None else adapt(state.frozen, state.params, config.model.lora)


def step_params(config: Config, params: Any, state: TrainState, batch: Batch) -> Params:
    """The same in training, with `params` for the trained ones: the adapters' dropout is on.

    The dropout of a micro-batch follows from seed, step and tokens, so that a run that resumes repeats it.
    """
    if config.model.lora is None:
        return params
    return adapt(state.frozen, params, config.model.lora, _dropout_key(config.seed, state.step, batch))


def _dropout_key(seed: int, step: Array, batch: Batch) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), jnp.sum(batch.tokens.astype(jnp.uint32)))


def merged_params(config: Config, state: TrainState) -> Params:
    """The policy as a model without adapters, in the base's types."""
    if config.model.lora is None:
        return state.params
    lora = dataclasses.replace(config.model.lora, adapter=None)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.frozen)
    return jax.jit(merge, static_argnums=2, out_shardings=shardings)(state.frozen, state.params, lora)
