"""The two-way weight table: which Hugging Face tensor is which of our arrays. Load reads it, save reads it back."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Index = tuple[slice, ...]


class Transform(NamedTuple):
    """How one layer's tensor becomes our array and returns; `hf_index`: which part of theirs holds a part of ours."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_hf: Callable[[np.ndarray], np.ndarray]
    hf_index: Callable[[Index], Index]


class Weight(NamedTuple):
    """One row of the table. Each `{}` in the Hugging Face name is an axis along which our array stacks theirs: the
    layer, then the expert."""

    hf: str
    ours: str
    transform: Transform

    @property
    def stack_axes(self) -> int:
        """Leading axes of our array along which it stacks Hugging Face's tensors."""
        return self.hf.count("{}")

    def hf_name(self, place: tuple[int, ...]) -> str:
        """The Hugging Face tensor at one place of the stack."""
        return self.hf.format(*place)

    def hf_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each Hugging Face tensor in an array of ours of this shape."""
        return self.transform.to_hf(np.broadcast_to(np.empty(()), shape[self.stack_axes :])).shape

    def places(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Every place of the stack of an array of ours of this shape, in order; one empty place where none stack."""
        return list(np.ndindex(shape[: self.stack_axes]))


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _transpose(array: np.ndarray) -> np.ndarray:
    return array.T


IDENTITY = Transform(_same, _same, lambda index: index)
TRANSPOSE = Transform(_transpose, _transpose, lambda index: index[::-1])
"""Hugging Face stores [out, in]; our kernels are [in, out]."""


def kernel(name: str) -> Weight:
    """The row of a matrix product inside the layers, e.g. `mlp.up_proj`."""
    return Weight(f"model.layers.{{}}.{name}.weight", f"layers/{name.replace('.', '/')}/kernel", TRANSPOSE)


def expert_kernel(name: str) -> Weight:
    """The row of a matrix product of the experts, e.g. `up_proj`: [layers, experts, in, out]."""
    return Weight(f"model.layers.{{}}.mlp.experts.{{}}.{name}.weight", f"layers/mlp/experts/{name}/kernel", TRANSPOSE)


def bias(name: str) -> Weight:
    """The row of the bias of a matrix product inside the layers."""
    return Weight(f"model.layers.{{}}.{name}.bias", f"layers/{name.replace('.', '/')}/bias", IDENTITY)


def scale(name: str) -> Weight:
    """The row of a norm's scale inside the layers."""
    return Weight(f"model.layers.{{}}.{name}.weight", f"layers/{name.replace('.', '/')}/scale", IDENTITY)


HEAD = Weight("lm_head.weight", "lm_head/embedding", IDENTITY)
"""The output head of untied models. Tied models do not store it."""


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": x}}` as `{"a/b": x}`."""
    return cast(dict[str, Any], flatten_dict(tree, sep="/"))


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    return unflatten_dict(flat, sep="/")
