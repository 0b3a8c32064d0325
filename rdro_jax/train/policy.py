"""The policy as the losses see it: parameters and packed rows in, completion log-probabilities out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from rdro_jax.batch import Batch
from rdro_jax.config import Config, ModelSource
from rdro_jax.losses import HeadSplit, completion_logps_from_hidden
from rdro_jax.models import ModelConfig, Params, abstract_params, forward, load_model_config, output_embedding
from rdro_jax.models.attention import attend_packed
from rdro_jax.parallel import (
    ROWS,
    SHARDS,
    check_heads,
    check_row_length,
    check_rows,
    make_constrain,
    make_mesh,
    param_shardings,
    replicated,
    spread_attention,
    spread_lookup,
)


def completion_logps(
    params: Params, config: ModelConfig, batch: Batch, *, mesh: Mesh | None = None
) -> Float[Array, "rows slots"]:
    """Log-probability of every completion of packed rows, in nats, float32; 0 for an empty slot.

    Policy and reference both go through here, so that they agree to the last bit before the first step. With a mesh,
    parameters lie as `parallel.param_shardings` says and rows over its data and fsdp axes.

    >>> import jax, rdro_jax as rj
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = rj.ModelConfig("llama", vocab_size=32, **shape)
    >>> params = rj.init_params(config, jax.random.key(0))
    >>> batch = rj.make_batch([[5, 6]], [[7, 8]], [True])
    >>> rj.completion_logps(params, config, batch).shape
    (1, 1)
    """
    mesh = None if mesh is None or mesh.size == 1 else mesh
    pinned = {} if mesh is None else _pinned(mesh)
    hidden = forward(params, config, batch.tokens, batch.positions, batch.segment_ids, **pinned)
    # Scoped, so that a profile shows what the head costs beside the layers.
    with jax.named_scope("completion_logps"):
        split = None if mesh is None else _head_split(mesh)
        return completion_logps_from_hidden(hidden, output_embedding(params, config), batch, split=split)


def _pinned(mesh: Mesh) -> dict[str, Any]:
    """How the decoder's parts lie on a mesh."""
    attend = spread_attention(mesh, attend_packed)
    return {"constrain": make_constrain(mesh), "attend": attend, "lookup": spread_lookup(mesh)}


def _head_split(mesh: Mesh) -> HeadSplit:
    return HeadSplit(mesh, tokens=(ROWS[0], ("context",)), vocab=("tensor",), width=SHARDS)


class Policy(NamedTuple):
    """An architecture on a mesh, without parameters."""

    model: ModelConfig
    mesh: Mesh
    param_shardings: Any
    """Sharding of every parameter."""
    logps: Callable[[Params, Batch], Float[Array, "rows slots"]]
    """`completion_logps` with activations pinned to the mesh: what the train step differentiates."""
    score: Callable[[Params, Batch], Float[Array, "rows slots"]]
    """The same, jitted, whole on every process: what scores the reference and held-out rows."""


def make_policy(directory: str | Path, mesh: Mesh, source: ModelSource | None = None) -> Policy:
    """The policy whose architecture a Hugging Face folder names.

    It computes as `source` says, the model section of a run's config; by default in float32.

    Raises: `ConfigError` where heads or parameters do not divide over the mesh, `WeightError` for an unusable folder.
    """
    model = load_model_config(directory)
    return policy_of(model if source is None else computing_as(model, source), mesh)


def computing_as(model: ModelConfig, source: ModelSource) -> ModelConfig:
    """The architecture with what a run's config says of how it is computed."""
    how = {name: getattr(source, name) for name in ("compute_dtype", "remat", "attention")}
    return dataclasses.replace(model, **how)


def policy_of(model: ModelConfig, mesh: Mesh) -> Policy:
    """The policy of an architecture. Raises: `ConfigError` where heads or parameters do not divide over the mesh."""
    check_heads(mesh, model.n_heads, model.n_kv_heads)

    def logps(params: Params, batch: Batch) -> Float[Array, "rows slots"]:
        return completion_logps(params, model, batch, mesh=mesh)

    shardings = param_shardings(abstract_params(model), mesh)
    return Policy(model, mesh, shardings, logps, jax.jit(logps, out_shardings=replicated(mesh)))


def make_run_policy(config: Config) -> Policy:
    """The policy of a run on its mesh. Raises: as `make_policy`; `ConfigError` where the rows do not divide."""
    mesh = make_mesh(config.mesh)
    check_rows(mesh, config.global_batch_size, config.num_microbatches)
    check_row_length(mesh, config.data.max_length)
    return make_policy(config.model.path, mesh, config.model)
