"""Where each parameter lies: the mesh axes that part its dimensions, and what one device holds of it."""

import math
from typing import Any, NamedTuple

import jax

from rdro_jax.parallel import path_name


class Place(NamedTuple):
    """One array of a state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    """Mesh axes of size above 1 by dimension, such as `-, fsdp*context, tensor`; `whole` where none parts it."""
    device_bytes: int


def layout(tree: Any) -> list[Place]:
    """The places of a tree of arrays or shapes that know their shardings, in the tree's order."""
    return [_place(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _place(path: str, leaf: Any) -> Place:
    size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return Place(path, tuple(leaf.shape), str(leaf.dtype), _spelled(leaf.sharding), size)


def _spelled(sharding: Any) -> str:
    words = []
    for axes in sharding.spec:
        named = (axes,) if isinstance(axes, str) else axes or ()
        words.append("*".join(axis for axis in named if sharding.mesh.shape[axis] > 1) or "-")
    return ", ".join(words) if set(words) - {"-"} else "whole"
