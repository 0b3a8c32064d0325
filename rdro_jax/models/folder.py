"""The tensors of a model folder: found, opened and described, not yet read. Damaged files are refused in one line."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from rdro_jax.errors import WeightError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 100_000_000


class Tensor(NamedTuple):
    """A tensor in an open safetensors file, not yet read."""

    file: Path
    name: str
    data: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.get_shape())


def open_tensors(folder: Path, files: ExitStack) -> dict[str, Tensor]:
    """Every tensor of the folder by name, files open and unread."""
    if (folder / WEIGHTS).exists():
        return {tensor.name: tensor for tensor in _open_file(folder / WEIGHTS, files)}
    if not (folder / INDEX).exists():
        raise WeightError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; only safetensors are read")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightError(f"{folder / INDEX}: weight_map is missing or empty; wanted tensor names to file names")
    found: dict[str, Tensor] = {}
    for name in sorted({_base_name(value, folder) for value in weight_map.values()}):
        for tensor in _open_file(folder / name, files):
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


def _open_file(file: Path, files: ExitStack) -> list[Tensor]:
    """The tensors of one safetensors file, of a type we read."""
    _check_inside(file)
    try:
        opened = files.enter_context(safe_open(file, framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise WeightError(f"{file}: not a whole safetensors file ({error}){_diagnosis(file)}") from None
    tensors = [Tensor(file, name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 (not a dict)
    for tensor in tensors:
        if tensor.data.get_dtype() not in ("F32", "BF16", "F16", "F64"):
            raise WeightError(
                f"{file}: tensor {tensor.name!r} has type {tensor.data.get_dtype()}; wanted F32, BF16 or F16"
            )
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


def same_numbers(one: Tensor, other: Tensor, rows: int = 4096) -> bool:
    """True where two matrices hold the same numbers, read a block of rows at a time."""
    if one.shape != other.shape:
        return False
    ends = [(at, min(at + rows, one.shape[0])) for at in range(0, one.shape[0], rows)]
    return all(np.array_equal(one.data[at:end], other.data[at:end]) for at, end in ends)


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
