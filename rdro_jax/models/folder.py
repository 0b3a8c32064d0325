"""The tensors of a model folder: found, described, read in parts, written one by one. Damage is refused in one line."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open

from rdro_jax.errors import WeightError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000
BLOCK_BYTES = 32_000_000
"""Bytes of a tensor that are read at a time where all of it is wanted but not at once."""
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}


class Tensor(NamedTuple):
    """A tensor in a safetensors file, not read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape)) * _BYTES[self.dtype]

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor at `index`.

        The file is opened for each part: open, it stays mapped, and what was read of it would count as our memory.
        """
        with safe_open(self.file, framework="numpy") as opened:
            return opened.get_slice(self.name)[index]

    def digest(self) -> bytes:
        """128-bit hash of its numbers as they lie in the file, read a block of rows at a time."""
        digest = xxhash.xxh3_128()
        rows = max(1, BLOCK_BYTES * self.shape[0] // max(self.nbytes, 1))
        for at in range(0, self.shape[0], rows):
            block = self.read((slice(at, min(at + rows, self.shape[0])),))
            digest.update(np.ascontiguousarray(block).view(np.uint8).data)
        return digest.digest()


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by name."""
    if (folder / WEIGHTS).exists():
        return {tensor.name: tensor for tensor in open_file(folder / WEIGHTS)}
    if not (folder / INDEX).exists():
        raise WeightError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; only safetensors are read")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightError(f"{folder / INDEX}: weight_map is missing or empty; wanted tensor names to file names")
    found: dict[str, Tensor] = {}
    for name in sorted({_base_name(value, folder) for value in weight_map.values()}):
        for tensor in open_file(folder / name):
            if tensor.name in found:
                raise WeightError(
                    f"{tensor.file}: duplicate tensor {tensor.name!r}, also in {found[tensor.name].file.name}"
                )
            if weight_map.get(tensor.name) != name:
                raise WeightError(f"{tensor.file}: unknown tensor {tensor.name!r}: {INDEX} does not place it here")
            found[tensor.name] = tensor
    for name, file in weight_map.items():
        if name not in found:
            raise WeightError(f"{folder / file}: missing tensor {name!r} that {INDEX} places here")
    return found


def _base_name(value: Any, folder: Path) -> str:
    """A shard's name, if it is a plain file name: an index must not reach outside its folder."""
    plain = isinstance(value, str) and value.endswith(".safetensors") and not {"/", "\\", "\0"} & set(value)
    if not plain:
        raise WeightError(
            f"{folder / INDEX}: weight_map names {value!r}; wanted a .safetensors file name without a path"
        )
    return value


def open_file(file: Path) -> list[Tensor]:
    """The tensors of one safetensors file, of a type we read."""
    _check_inside(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            tensors = [Tensor(file, name, tuple(at.get_shape()), at.get_dtype()) for name, at in slices.items()]
    except (SafetensorError, OSError) as error:
        raise WeightError(f"{file}: not a whole safetensors file ({error}){_diagnosis(file)}") from None
    for tensor in tensors:
        if tensor.dtype not in _BYTES:
            raise WeightError(f"{file}: tensor {tensor.name!r} has type {tensor.dtype}; wanted F32, BF16 or F16")
    return tensors


def _check_inside(file: Path) -> None:
    """Refuse a link that leaves the folder, other than into the blobs of a Hugging Face cache."""
    folder = file.parent.resolve()
    if not file.is_file():
        raise WeightError(f"{file}: missing; the download is not complete")
    allowed = (folder, folder.parent.parent / "blobs")
    if file.resolve().parent not in allowed:
        raise WeightError(f"{file}: links to {file.resolve()}, outside the model folder; copy the file instead")


def _diagnosis(file: Path) -> str:
    """What a damaged file looks like, and what to do about it."""
    with file.open("rb") as stream:
        head = stream.read(64).lstrip().lower()
    if not head:
        return ": the file is empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return ": this is a git-lfs pointer; run `git lfs pull`"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ": this is a web page; check the address and log in if the model is gated"
    return "; download it again"


class Entry(NamedTuple):
    """A tensor to be written, and how to get its numbers when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    numbers: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def write_tensors(file: Path, entries: Iterable[Entry]) -> dict[str, bytes]:
    """Writes a safetensors file tensor by tensor and returns the digest of each.

    The format: length of the header in 8 bytes, the header as JSON, the numbers, little-endian and without gaps.

    By hand because the library's writer wants all tensors of a file in memory at once.
    """
    entries = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    digests, at = {}, 0
    for entry in entries:
        place = {"shape": list(entry.shape), "data_offsets": [at, at + entry.nbytes]}
        header[entry.name] = {"dtype": _NAMES[entry.dtype.name]} | place
        at += entry.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for aligned data
    with file.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in entries:
            numbers = np.ascontiguousarray(entry.numbers())
            assert (numbers.shape, numbers.dtype) == (entry.shape, entry.dtype), f"{entry.name} is not as announced"
            raw = numbers.reshape(-1).view(np.uint8).data
            digests[entry.name] = xxhash.xxh3_128_digest(raw)
            out.write(raw)
            del numbers, raw  # the next tensor is computed before these names are bound again
        out.flush()
        os.fsync(out.fileno())  # a folder moved into place must not lose its weights to a power cut
    return digests


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object without repeated keys."""
    if not file.is_file():
        raise WeightError(f"{file}: missing; wanted a Hugging Face model folder with config.json and {WEIGHTS}")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise WeightError(f"{file}: {file.stat().st_size} bytes; a file of this kind has at most {MAX_JSON_BYTES}")
    try:
        value = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise WeightError(f"{file}: not valid JSON ({error}){_diagnosis(file)}") from None
    if not isinstance(value, dict):
        raise WeightError(f"{file}: holds a {type(value).__name__}; wanted a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return result
