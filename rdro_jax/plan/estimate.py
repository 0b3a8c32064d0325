"""The step's peak memory by counting: what has to be kept at the moment that needs the most, without a compiler.

The state is counted exactly, by the shapes and shardings of the real one. What the step makes on the way follows from
the architecture: every term below is an array of `models`, `losses.logprobs` or `train.step`.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from rdro_jax.config import Config
from rdro_jax.losses.head import MAX_BLOCK
from rdro_jax.models import ModelConfig
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import MeshConfig, path_name
from rdro_jax.parallel.mesh import AXES
from rdro_jax.plan.compiled import SOME_STEPS, settled
from rdro_jax.train.policy import policy_of
from rdro_jax.train.program import abstract_batch, abstract_state
from rdro_jax.train.state import TrainState

FLOAT32 = 4
SIZES = {"float32": 4, "bfloat16": 2}


class Place(NamedTuple):
    """Where one parameter lies."""

    name: str
    shape: tuple[int, ...]
    spec: str
    """Mesh axes of each dimension."""
    bytes: int
    """On one device."""
    trained: bool


class Parts(NamedTuple):
    """Bytes of one device, by what they are for."""

    parameters: int
    optimizer: int
    frozen: int
    """The model beside its adapters."""
    batch: int
    """Tokens, labels and the reference's log-probs, which are data: no reference model is in memory."""
    gradients: int
    copies: int
    """Parameters a second time, as the compiler wants them for all layers before the loop over layers begins."""
    kept: int
    """Activations that the forward pass keeps for the backward pass."""
    working: int
    """The widest moment of a layer's or the head's computation."""

    @property
    def peak(self) -> int:
        """All of them: the backward pass of the last layers has them at once."""
        return sum(self)


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh a config makes of so many devices, without devices. Raises: ConfigError."""
    sizes = config.sizes(devices)
    return AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def plan_state(config: Config, model: ModelConfig, mesh: Mesh | AbstractMesh) -> tuple[TrainState, Any]:
    """Shapes and shardings of state and batch. Raises: ConfigError where the mesh does not divide the model."""
    policy = policy_of(model, mesh)  # pyright: ignore[reportArgumentType]
    optimizer = make_optimizer(config.optimizer, config.max_steps or SOME_STEPS)
    return abstract_state(config, policy, settled(config.loss), optimizer), abstract_batch(config, policy)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Shards that the rows of a micro-batch are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def layout(state: TrainState) -> list[Place]:
    """Every parameter with its place, in the order of the tree."""
    places = []
    for trained, tree in ((True, state.params), (False, state.frozen)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            spec = ", ".join("-" if axes is None else str(axes) for axes in leaf.sharding.spec)
            places.append(Place(path_name(path), leaf.shape, spec or "whole", _on_device(leaf), trained))
    return places


def estimate(
    config: Config, model: ModelConfig, platform: str, mesh: Mesh | AbstractMesh, state: TrainState, batch: Any
) -> Parts:
    """Bytes per device at the step's peak, by part, where the compiler is that of a platform."""
    trained = sum(math.prod(_shard(leaf)) for leaf in jax.tree.leaves(state.params))
    rows = config.global_batch_size // (config.num_microbatches * row_shards(mesh))
    # Micro-batches add to a sum that stands beside the gradients of the one at hand.
    sums = 1 if config.num_microbatches == 1 else 2
    tokens = rows * config.data.max_length
    return Parts(
        parameters=_total(state.params),
        optimizer=_total(state.opt_state),
        frozen=_total(state.frozen),
        batch=_total(batch),
        gradients=sums * trained * FLOAT32,
        copies=_copies(model, platform, state),
        kept=_kept(model, tokens, config.data.max_length, mesh),
        working=max(_layer(model, tokens, config.data.max_length, mesh), _head(model, tokens, mesh)),
    )


def _copies(model: ModelConfig, platform: str, state: TrainState) -> int:
    """What compilers move out of the loops over layers and vocabulary blocks, as it is the same in every turn.

    TPU: the cast of matrices to the compute type. GPU: a transpose of what is gathered along its last axis.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.frozen)):
        name, numbers = path_name(path), math.prod(_shard(leaf))
        if "lora" in name or len(leaf.shape) < 2 or ("embed_tokens" in name and not model.tie_word_embeddings):
            continue  # too small to count; or looked up only, which gathers nothing
        if platform == "tpu" and leaf.dtype.name != model.compute_dtype:
            total += numbers * SIZES[model.compute_dtype]
        if platform == "gpu" and numbers * leaf.dtype.itemsize < _bytes_of_rows(leaf):
            total += numbers * leaf.dtype.itemsize
    return total


def _bytes_of_rows(leaf: Any) -> int:
    """Bytes of the shard if its last axis were whole."""
    return math.prod((*_shard(leaf)[:-1], leaf.shape[-1])) * leaf.dtype.itemsize


def _kept(model: ModelConfig, tokens: int, seq: int, mesh: Any) -> int:
    """Each layer's input, and where nothing is computed again everything else its backward pass reads."""
    size = SIZES[model.compute_dtype]
    inputs = model.n_layers * tokens * model.d_model * size
    return inputs + (0 if model.remat == "full" else model.n_layers * _residuals(model, tokens, seq, mesh))


def _residuals(model: ModelConfig, tokens: int, seq: int, mesh: Any) -> int:
    """What one layer's backward pass reads beside the layer's input."""
    size, parts = SIZES[model.compute_dtype], mesh.shape["tensor"]
    heads, kv = model.n_heads * model.head_dim // parts, model.n_kv_heads * model.head_dim // parts
    wide = (model.d_ff if model.moe is None else model.moe.n_active * model.moe.d_expert) // parts
    # Two norms; queries, keys, values and their mean; the residual between; gate, up, their product.
    numbers = 3 * model.d_model + 2 * heads + 2 * kv + 3 * wide
    return tokens * size * numbers + _scores(model, tokens, seq, mesh)


def _scores(model: ModelConfig, tokens: int, seq: int, mesh: Any) -> int:
    """Float32 weights of all heads over what a query may see, in four blocks of queries; fused kernels keep none."""
    if model.attention != "xla":
        return 0
    return tokens * (model.n_heads // mesh.shape["tensor"]) * seq * 5 // 8 * FLOAT32


def _layer(model: ModelConfig, tokens: int, seq: int, mesh: Any) -> int:
    """Of a layer's backward pass: its residuals, cotangents of the widest operation, one gathered matrix."""
    size, parts = SIZES[model.compute_dtype], mesh.shape["tensor"]
    residuals = _residuals(model, tokens, seq, mesh) if model.remat == "full" else 0
    # Queries are taken a quarter at a time; the last quarter sees all keys, 2/5 of what all quarters see.
    scores = _scores(model, tokens, seq, mesh) * 2 // 5
    wide = 2 * tokens * model.d_ff // parts * size
    return residuals + max(wide, scores) + model.d_model * model.d_ff // parts * size


def _head(model: ModelConfig, tokens: int, mesh: Any) -> int:
    """One block of the vocabulary: logits and their cotangents in float32, the block gathered and its gradient."""
    block = min(model.vocab_size, MAX_BLOCK)
    size = SIZES[model.compute_dtype]
    logits = tokens * block * (2 * FLOAT32 + size)
    return logits + tokens * model.d_model * (FLOAT32 + size) + block * model.d_model * (size + FLOAT32)


def _total(tree: Any) -> int:
    return sum(_on_device(leaf) for leaf in jax.tree.leaves(tree))


def _on_device(leaf: Any) -> int:
    return math.prod(_shard(leaf)) * leaf.dtype.itemsize


def _shard(leaf: Any) -> tuple[int, ...]:
    return leaf.sharding.shard_shape(leaf.shape)
