"""One array of ours from the tensors that hold it, straight onto its devices.

Host memory is what matters: stacked over layers, one array can be a quarter of the model. A part of an array that is
small is put together on the host; a larger one is made on its device and filled piece by piece, in place.
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from rdro_jax.errors import WeightError
from rdro_jax.models.folder import Tensor
from rdro_jax.models.weights import Index, Weight

PIECE_BYTES = 64_000_000
"""Most bytes of a part that is put together on the host, and of a piece of a larger one."""
Advance = Callable[[int], None]
"""Called with the bytes of a file that were read."""


def load_array(
    row: Weight,
    wanted: jax.ShapeDtypeStruct,
    tensors: dict[str, Tensor],
    sharding: Sharding | None = None,
    advance: Advance = lambda count: None,
) -> Array:
    """The array of one row of the table, whole on the default device or in parts on the devices of `sharding`.

    Raises:
        WeightError: a number is NaN or infinite, in the array or in its type.
    """
    make = partial(_load_part, row, wanted, tensors, advance=advance)
    if sharding is None:
        return make(tuple(slice(0, size) for size in wanted.shape), [None])[0]
    parts: dict[str, tuple[Index, list[jax.Device | None]]] = {}
    for device, index in sharding.addressable_devices_indices_map(wanted.shape).items():
        part = tuple(slice(*at.indices(size)[:2]) for at, size in zip(index or (), wanted.shape, strict=True))
        # By its spelling: slices are not hashable before Python 3.12. Devices with copies of a part share its reading.
        parts.setdefault(str(part), (part, []))[1].append(device)
    arrays = [array for part, devices in parts.values() for array in make(part, devices)]
    return jax.make_array_from_single_device_arrays(wanted.shape, sharding, arrays)


def _load_part(
    row: Weight,
    wanted: jax.ShapeDtypeStruct,
    tensors: dict[str, Tensor],
    part: Index,
    devices: list[jax.Device | None],
    advance: Advance,
) -> list[Array]:
    """One part of an array on each of the devices that hold it."""
    shape = tuple(at.stop - at.start for at in part)
    pieces = _pieces(row, wanted, tensors, part, advance)
    if np.prod(shape) * wanted.dtype.itemsize <= PIECE_BYTES:
        whole = np.empty(shape, wanted.dtype)
        for at, numbers in pieces:
            whole[tuple(slice(a, a + n) for a, n in zip(at, numbers.shape, strict=True))] = numbers
        return [jax.device_put(whole, device) for device in devices]
    arrays = [jnp.zeros(shape, wanted.dtype, device=device) for device in devices]
    for at, numbers in pieces:
        arrays = [
            _fill(array, jax.device_put(numbers, device), at) for array, device in zip(arrays, devices, strict=True)
        ]
        jax.block_until_ready(arrays)  # or the pieces of the whole array wait in host memory
    return arrays


@partial(jax.jit, donate_argnums=0)
def _fill(array: Array, numbers: Array, at: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_update_slice(array, numbers, at)


def _pieces(
    row: Weight, wanted: jax.ShapeDtypeStruct, tensors: dict[str, Tensor], part: Index, advance: Advance
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """What a part is made of: where in it each piece begins, and its numbers in our layout and type."""
    stacked, inner = part[: row.stack_axes], part[row.stack_axes :]
    for place in itertools.product(*(range(at.start, at.stop) for at in stacked)):
        tensor = tensors[row.hf_name(place)]
        for block in _blocks(tensor, row.transform.hf_index(inner)):
            numbers = row.transform.to_ours(_read_finite(tensor, block, wanted.dtype))
            advance(tensor.nbytes * numbers.size // int(np.prod(tensor.shape)))
            begins = (*place, *(at.start for at in row.transform.hf_index(block)))
            offset = tuple(begin - at.start for begin, at in zip(begins, part, strict=True))
            yield offset, numbers.reshape((1,) * len(place) + numbers.shape)


def _blocks(tensor: Tensor, index: Index) -> Iterator[Index]:
    """A part of a tensor as runs of rows of at most `PIECE_BYTES`."""
    first, rest = index[0], index[1:]
    row_bytes = tensor.nbytes // tensor.shape[0]
    step = max(1, PIECE_BYTES // row_bytes)
    for start in range(first.start, first.stop, step):
        yield (slice(start, min(start + step, first.stop)), *rest)


def _read_finite(tensor: Tensor, index: Index, dtype: np.dtype) -> np.ndarray:
    """A part of a tensor in a type of ours; every number of it finite."""
    with np.errstate(over="ignore"):
        numbers = tensor.read(index).astype(dtype, copy=False)
    if not np.isfinite(numbers).all():
        raise WeightError(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinity; the file is damaged")
    return numbers
