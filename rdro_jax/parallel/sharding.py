"""Which axis of which array lies on which mesh axis; an axis that does not divide is refused, never replicated."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rdro_jax.errors import ConfigError

ROWS = PartitionSpec(("data", "fsdp"))
"""Rows of a batch."""

ACTIVATIONS = PartitionSpec(("data", "fsdp"), "context")
"""Rows, and tokens of a row, of whatever the model computes per token."""

SHARDS = ("fsdp", "context")
"""Axes that split a parameter beside `tensor`: devices that hold parts of one row need not hold the same parameters."""

HOST_MEMORY = "pinned_host"
"""What JAX calls memory of the host that devices copy from and to by themselves."""

PARAM_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(embed_tokens|lm_head)/embedding", PartitionSpec("tensor", SHARDS)),
    (r"experts/(gate_proj|up_proj)/kernel", PartitionSpec(None, None, SHARDS, "tensor")),
    (r"experts/down_proj/kernel", PartitionSpec(None, None, "tensor", SHARDS)),
    (r"mlp/gate/kernel", PartitionSpec(None, SHARDS, None)),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/kernel", PartitionSpec(None, SHARDS, "tensor")),
    (r"(q_proj|k_proj|v_proj)/bias", PartitionSpec(None, "tensor")),
    (r"(o_proj|down_proj)/kernel", PartitionSpec(None, "tensor", SHARDS)),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/lora_A", PartitionSpec(None, SHARDS, None)),
    (r"(q_proj|k_proj|v_proj|gate_proj|up_proj)/lora_B", PartitionSpec(None, None, "tensor")),
    (r"(o_proj|down_proj)/lora_A", PartitionSpec(None, "tensor", None)),
    (r"(o_proj|down_proj)/lora_B", PartitionSpec(None, None, SHARDS)),
    (r"(norm|layernorm)/scale", PartitionSpec()),
)
"""Searched in order, first match wins; layers are stacked on axis 0."""


class Placed(NamedTuple):
    """One array of a state, and what each device holds of it."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: PartitionSpec
    device_bytes: int
    """Bytes on one device."""


def layout(tree: Any, shardings: Any) -> list[Placed]:
    """Where each array of a tree of arrays or shapes lies, in the tree's order.

    `shardings` is a tree alike: of `param_shardings` for parameters or adapters, of `state_shardings` for a state.
    """

    def place(path, leaf, sharding):
        shard = math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        return Placed(path_name(path), tuple(leaf.shape), str(leaf.dtype), sharding.spec, shard)

    placed = jax.tree_util.tree_map_with_path(place, tree, shardings)
    return jax.tree.leaves(placed, is_leaf=lambda node: isinstance(node, Placed))


def param_shardings(params: Any, mesh: Mesh, rules=PARAM_RULES) -> Any:
    """Sharding of every parameter by the first rule its path matches.

    `params` is a tree of arrays or shapes. Raises `ConfigError` for a path without a rule and for an axis that its
    mesh axes do not divide.
    """

    def of(path, leaf):
        name = path_name(path)
        return _checked(name, leaf.shape, _first_match(name, rules), mesh)

    return jax.tree_util.tree_map_with_path(of, params)


def path_name(path) -> str:
    """The path of a leaf as 'layers/self_attn/q_proj/kernel'."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _first_match(name, rules):
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    raise ConfigError(f"sharding of {name}: no rule matches; add one to the rules given to param_shardings")


def _checked(name, shape, spec, mesh):
    for size, axes in zip(shape, spec, strict=False):
        used = [axis for axis in _axes(axes) if mesh.shape[axis] > 1]
        parts = math.prod(mesh.shape[axis] for axis in used)
        if size % parts:
            raise ConfigError(
                f"sharding of {name} {tuple(shape)}: {'*'.join(used)}={parts} does not divide {size}; "
                f"sizes that do: {_divisors(size, mesh.size)}"
            )
    return NamedSharding(mesh, spec)


def _axes(axes):
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def _divisors(size, limit):
    return ", ".join(str(n) for n in range(1, limit + 1) if size % n == 0)


def check_heads(mesh: Mesh, n_heads: int, n_kv_heads: int) -> None:
    """Raise `ConfigError` unless the tensor axis splits whole heads.

    The kernels' columns may divide where the heads do not: 3 heads of 64 over 2 devices would cut one in half.
    """
    tensor = mesh.shape["tensor"]
    if n_heads % tensor or n_kv_heads % tensor:
        shared = math.gcd(n_heads, n_kv_heads)
        raise ConfigError(
            f"mesh.tensor: got {tensor} for {n_heads} heads and {n_kv_heads} key/value heads; "
            f"sizes that divide both: {_divisors(shared, shared)}"
        )


def check_rows(mesh: Mesh, global_batch_size: int, num_microbatches: int) -> None:
    """Raise `ConfigError` unless every micro-batch gives every data shard the same number of rows."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    wanted = shards * num_microbatches
    if global_batch_size % wanted:
        raise ConfigError(
            f"global_batch_size: got {global_batch_size} rows; wanted a multiple of {wanted} "
            f"(data*fsdp={shards} shards x {num_microbatches} micro-batches)"
        )


def check_row_length(mesh: Mesh, max_length: int) -> None:
    """Raise `ConfigError` unless the context axis cuts rows of `max_length` tokens into equal parts."""
    parts = mesh.shape["context"]
    if max_length % parts:
        raise ConfigError(f"data.max_length: got {max_length} tokens; wanted a multiple of mesh.context={parts}")


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose leading axis is rows."""
    return NamedSharding(mesh, ROWS)


def on_host(shardings: Any) -> Any:
    """The same shardings in the memory of the devices' hosts. Raises: ConfigError where the platform has no such."""

    def moved(sharding: NamedSharding) -> NamedSharding:
        device = next(iter(sharding.device_set))
        kinds = [memory.kind for memory in device.addressable_memories()]
        if HOST_MEMORY not in kinds:
            raise ConfigError(
                f"optimizer.offload: got true, but {device.platform} has no {HOST_MEMORY} memory (only "
                f"{', '.join(kinds)}); set it to false"
            )
        return sharding.with_memory_kind(HOST_MEMORY)

    return jax.tree.map(moved, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of scalars and small arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def make_constrain(mesh: Mesh) -> Callable[[str, jax.Array], jax.Array]:
    """A function that pins the activations [rows, seq, d_model] to the mesh.

    Without it the compiler may replicate activations over `fsdp` and add an all-reduce per layer.
    """
    sharding = NamedSharding(mesh, ACTIVATIONS)
    return lambda name, x: jax.lax.with_sharding_constraint(x, sharding)
