"""Tokenised data on disk: one folder of memory-mapped arrays, named by the hash of everything that decides them."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from rdro_jax.data.config import DataConfig, Source
from rdro_jax.data.examples import Arrays
from rdro_jax.data.reading import Part, Side
from rdro_jax.data.records import FaultLog
from rdro_jax.data.report import Layout, SourceReport, Tally
from rdro_jax.data.sources import source_files
from rdro_jax.errors import StorageError
from rdro_jax.run_files import seal, unseal, write_whole

STORE_VERSION = 2
"""Raised when a change of ours alters what the same rows become, so that no artefact outlives it."""

META_FILE = "meta.json"
DECIDING = (
    "max_length",
    "max_prompt_length",
    "max_completion_length",
    "truncation",
    "chat_template_kwargs",
    "pair_by_prompt",
)
"""Settings that decide what a row becomes. What is done about bad rows is decided when the artefact is opened."""


class Artefact(NamedTuple):
    """What was stored: arrays that stay on disk until they are read, and what was counted on the way."""

    path: Path
    arrays: Arrays
    tally: Tally
    sources: list[SourceReport]


def content_key(
    sources: Sequence[Source], tokenizer: str, config: DataConfig, *, require_label: bool, layout: Layout, side: Side
) -> str:
    """128-bit hash, as hex, of the sources' bytes and of all that decides what becomes of them.

    `tokenizer` is the `tokenizer_hash`. Raises: RecordError for a source that cannot be read.
    """
    files = {source.path: [_file_hash(path) for path in source_files(source)] for source in sources}
    deciding = {name: getattr(config, name) for name in DECIDING}
    split = [side, config.heldout_fraction] if side != "all" else [side]
    parts = [STORE_VERSION, [dataclasses.astuple(source) for source in sources], files, tokenizer, deciding, split]
    return xxhash.xxh3_128_hexdigest(json.dumps([*parts, require_label, layout]).encode())


def _file_hash(path: str | Path) -> str:
    """128-bit hash of a file's bytes; the name of a file that cannot be read, which reading will complain about."""
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    except OSError:
        return str(path)
    return digest.hexdigest()


def save_part(path: Path, part: Part) -> None:
    """Write one part in one move: a file that is there is whole."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    told = {"tally": tally_to_json(part.tally), "arrays": _hash_arrays(part.arrays)}
    save_file(part.arrays, unfinished, metadata={"told": json.dumps(seal(told))})
    unfinished.replace(path)


def load_part(path: Path) -> Part | None:
    """One stored part; None where it is not as it was written."""
    try:
        with safe_open(path, framework="numpy") as file:
            told = unseal((file.metadata() or {}).get("told", ""))
        arrays = load_file(path)
    except SafetensorError:
        return None
    if told is None or told["arrays"] != _hash_arrays(arrays):
        return None
    return Part(cast(Arrays, arrays), tally_from_json(told["tally"]))


def _hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """128-bit hash of arrays with their names, types and shapes."""
    digest = xxhash.xxh3_128()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def tally_to_json(tally: Tally) -> dict[str, Any]:
    """The tally as JSON values."""
    too_long = {str(int(label)): count for label, count in tally.too_long.items()}
    return vars(tally) | {"faults": vars(tally.faults), "columns": sorted(tally.columns), "too_long": too_long}


def tally_from_json(values: dict[str, Any]) -> Tally:
    """The tally that `tally_to_json` wrote."""
    faults = FaultLog(values["faults"]["first"], Counter(values["faults"]["causes"]))
    too_long = Counter({label == "1": count for label, count in values["too_long"].items()})
    return Tally(**values | {"faults": faults, "columns": set(values["columns"]), "too_long": too_long})


def merge_parts(parts: Sequence[Path], folder: Path, meta: Mapping[str, Any]) -> None:
    """Write the arrays of all parts, one after the other, and what is known of them; one part in memory at a time."""
    arrays: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for part in parts:
        for name, values in _arrays_of(part).items():
            rows = arrays[name][1][0] if name in arrays else 0
            arrays[name] = values.dtype, (rows + len(values), *values.shape[1:])
    # Written, not mapped: mapped pages count as this process's memory, and a full disk ends it instead of an OSError.
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in arrays}
        for name, (dtype, shape) in arrays.items():
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        for part in parts:
            for name, values in _arrays_of(part).items():
                files[name].write(values.tobytes())
    identities = {f"{name}.npy": _identity(folder / f"{name}.npy") for name in arrays}
    told = {**meta, "files": identities}
    write_whole(folder / META_FILE, json.dumps(seal(told), indent=2))


def _arrays_of(part: Path) -> Arrays:
    """Raises: StorageError for a part that is not as it was written."""
    found = load_part(part)
    if found is None:
        raise StorageError(f"{part}: damaged since it was written; start again and it is made again")
    return found.arrays


def _identity(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh3": _file_hash(path)}


def _read_meta(path: Path) -> dict[str, Any]:
    """Raises: StorageError for metadata that are not as they were written."""
    with suppress(OSError):
        if (meta := unseal((path / META_FILE).read_bytes())) is not None:
            return meta
    raise StorageError(f"{path / META_FILE}: damaged since it was prepared; remove {path} and it is prepared again")


def open_artefact(path: Path) -> Artefact:
    """A stored artefact, all of it read once and compared with its hashes.

    Raises: StorageError for an artefact that is damaged.
    """
    meta = _read_meta(path)
    for name, wanted in meta["files"].items():
        if not (path / name).is_file() or _identity(path / name) != wanted:
            raise StorageError(f"{path / name}: damaged since it was prepared; remove {path} and it is prepared again")
    arrays = {Path(name).stem: np.load(path / name, mmap_mode="r") for name in meta["files"]}
    return Artefact(path, arrays, tally_from_json(meta["tally"]), [SourceReport(**s) for s in meta["sources"]])
