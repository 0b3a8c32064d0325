"""The step's peak memory by counting: what has to be kept at the moment that needs the most, without a compiler.

The state is counted exactly, by the shapes and shardings of the real one. What the step makes on the way follows from
the architecture: every term below is an array of `models`, `losses.head` or `train.step`.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from rdro_jax.config import Config
from rdro_jax.losses.head import MAX_BLOCK, MAX_CHUNKS, SHORTEST_CHUNK
from rdro_jax.models import ModelConfig
from rdro_jax.models.flops import layer_weights
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import SHARDS, MeshConfig, check_row_length, check_rows, path_name
from rdro_jax.parallel.mesh import AXES
from rdro_jax.plan.compiled import SOME_STEPS, settled
from rdro_jax.train.policy import policy_of
from rdro_jax.train.program import abstract_batch, abstract_state
from rdro_jax.train.state import TrainState

FLOAT32 = 4
SIZES = {"float32": 4, "bfloat16": 2}


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


class Local(NamedTuple):
    """What one device computes at a time."""

    model: ModelConfig
    tokens: int
    """Of one micro-batch: its rows, or its parts of them."""
    seq: int
    """Tokens of a whole row, which every query may see."""
    tensor: int
    context: int

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return SIZES[self.model.compute_dtype]


def abstract_mesh(config: MeshConfig, devices: int) -> AbstractMesh:
    """The mesh a config makes of so many devices, without devices. Raises: ConfigError."""
    sizes = config.sizes(devices)
    return AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def plan_state(config: Config, model: ModelConfig, mesh: Any) -> tuple[TrainState, Any]:
    """Shapes and shardings of state and batch. Raises: ConfigError where the mesh does not divide model or batch."""
    check_rows(mesh, config.global_batch_size, 1)
    check_row_length(mesh, config.data.max_length)
    policy = policy_of(model, mesh)
    optimizer = make_optimizer(config.optimizer, config.max_steps or SOME_STEPS)
    return abstract_state(config, policy, settled(config.loss), optimizer), abstract_batch(config, policy)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Shards that the rows of a micro-batch are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def estimate(
    config: Config, model: ModelConfig, platform: str, mesh: Mesh | AbstractMesh, state: TrainState, batch: Any
) -> Parts:
    """Bytes per device at the step's peak, by part, where the compiler is that of a platform."""
    tensor, context, seq = mesh.shape["tensor"], mesh.shape["context"], config.data.max_length
    rows = config.global_batch_size // (config.num_microbatches * row_shards(mesh))
    here = Local(model, rows * seq // context, seq, tensor, context)
    trained = sum(math.prod(_shard(leaf)) for leaf in jax.tree.leaves(state.params))
    kept, working = _kept(here), max(_layer(here), _head(here))
    # Micro-batches add to a sum that stands beside the gradients of the one at hand.
    sums = 1 if config.num_microbatches == 1 else 2
    return Parts(
        parameters=_total(state.params),
        # Moments on the host come to the device when the backward pass has let go of what it worked with.
        optimizer=max(0, _total(state.opt_state) - (kept + working if config.optimizer.offload else 0)),
        frozen=_total(state.frozen),
        batch=_total(batch),
        gradients=sums * trained * FLOAT32 + _widest(state.params) // tensor * here.size,
        copies=_copies(model, platform, state),
        kept=kept,
        working=working,
    )


def _copies(model: ModelConfig, platform: str, state: TrainState) -> int:
    """What compilers move out of the loop over layers, as it is the same in every turn.

    TPU: the cast of matrices to the compute type, which without recomputation any platform keeps for the backward
    pass. GPU: a transpose of what is gathered along its last axis.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.frozen)):
        name, numbers = path_name(path), math.prod(_shard(leaf))
        if "lora" in name or "layers" not in name or len(leaf.shape) < 3:
            continue
        if (platform == "tpu" or model.remat == "none") and leaf.dtype.name != model.compute_dtype:
            total += numbers * SIZES[model.compute_dtype]
        if platform == "gpu" and _gathered_last(leaf.sharding):
            total += numbers * leaf.dtype.itemsize
    return total


def _gathered_last(sharding: Any) -> bool:
    """Whether the last axis is one of those that are gathered to be used, and not computed with in parts."""
    last = sharding.spec[-1] or ()
    return any(sharding.mesh.shape[axis] > 1 for axis in SHARDS if axis in last)


def _widest(params: Any) -> int:
    """Numbers of the largest matrix in a layer, whose gradient is whole before it is scattered."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return max(math.prod(leaf.shape[1:]) for path, leaf in leaves if "layers" in path_name(path))


def _kept(here: Local) -> int:
    """Of every layer its input, and of the rest what `remat` says; with `none` all that the layer's operations save."""
    heads, kv, wide = _widths(here)
    if here.model.remat == "none":
        return here.model.n_layers * _saved(here)
    numbers = {
        "full": 0,
        "named": 2 * heads + 2 * kv,
        "dots": heads + 2 * kv + 2 * wide + 2 * here.model.d_model,
    }[here.model.remat]
    return here.model.n_layers * here.tokens * here.size * (here.model.d_model + numbers)


def _saved(here: Local) -> int:
    """What one layer saves where nothing is computed again: what jax lists as residuals of its vjp, less duplicates.

    More than is needed, for each operation saves what its own derivative reads: a norm three float32 arrays, the gated
    layer six of its width, attention queries, keys, values and what it mixed of them.
    """
    heads, kv, wide = _widths(here)
    numbers = 2 * here.model.d_model + 2 * heads + 2 * kv * here.context + 6 * wide
    norms = 6 * here.model.d_model * FLOAT32
    mixed = heads * FLOAT32 if here.model.attention == "xla" else 0  # before it is divided by the sum of weights
    return here.tokens * (here.size * numbers + norms + mixed) + _weights(here)


def _widths(here: Local) -> tuple[int, int, int]:
    """Columns of queries, of keys or values, and of the feed-forward layer that a token meets."""
    model = here.model
    wide = model.d_ff if model.moe is None else model.moe.n_active * model.moe.d_expert
    heads, kv = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    return heads // here.tensor, kv // here.tensor, wide // here.tensor


def _residuals(here: Local) -> int:
    """What one layer's backward pass reads beside the layer's input."""
    heads, kv, wide = _widths(here)
    # Two norms; the residual between; queries and what attention makes of them; gate, up, their product. Keys and
    # values are those of whole rows.
    numbers = 3 * here.model.d_model + 2 * heads + 2 * kv * here.context + 3 * wide
    return here.tokens * here.size * numbers + _weights(here)


def _weights(here: Local) -> int:
    """Attention's weights as the backward pass reads them: in float32, and cast for their product with the values."""
    cast = here.size if here.size != FLOAT32 else 0
    return _scores(here) * (FLOAT32 + cast) // FLOAT32


def _scores(here: Local) -> int:
    """Float32 weights of all heads over what a query may see, in four blocks of queries; fused kernels keep none."""
    if here.model.attention != "xla":
        return 0
    seen = here.seq * 5 // 8 if here.context == 1 else here.seq
    return here.tokens * (here.model.n_heads // here.tensor) * seen * FLOAT32


def _layer(here: Local) -> int:
    """Of a layer's backward pass: its residuals, cotangents of the widest operation, its gathered matrices."""
    residuals = 0 if here.model.remat == "none" else _residuals(here)
    # Queries are taken a quarter at a time; the last quarter sees all keys, 2/5 of what all quarters see.
    scores = _scores(here) * 2 // 5
    wide = 2 * here.tokens * _widths(here)[2] * here.size
    return residuals + max(wide, scores) + layer_weights(here.model, met=False) // here.tensor * here.size


def _head(here: Local) -> int:
    """One block of the vocabulary with its gradient, logits of a chunk of tokens, states and cotangents of all."""
    block = min(here.model.vocab_size // here.tensor, MAX_BLOCK)
    chunk = min(here.tokens, max(here.tokens // MAX_CHUNKS, SHORTEST_CHUNK))
    both = FLOAT32 + here.size
    return chunk * block * (FLOAT32 + both) + (here.tokens + block) * here.model.d_model * both


def _total(tree: Any) -> int:
    return sum(math.prod(_shard(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shard(leaf: Any) -> tuple[int, ...]:
    return leaf.sharding.shard_shape(leaf.shape)
