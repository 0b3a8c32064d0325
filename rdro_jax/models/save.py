"""Parameters -> Hugging Face folders, by the weight table read backwards: tensors, then configuration and tokenizer.

Written beside the target, read back, and moved when whole.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.hub import model_folder
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.decoder import Params, abstract_params
from rdro_jax.models.families import FAMILIES, weight_table
from rdro_jax.models.folder import INDEX, WEIGHTS, Entry, open_tensors, write_tensors
from rdro_jax.models.hf import load_model_config
from rdro_jax.models.weights import Weight, flatten

SHARD_BYTES = 5_000_000_000
GATHER_BYTES = 2_000_000
"""Most bytes of a tensor that processes gather at a time; of larger blocks the C library keeps hundreds of MB."""
COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
NOT_SAVED = ("compute_dtype", "attention", "remat", "eos_token_ids")
"""Fields of a ModelConfig that say how it is run, not which numbers are right."""


def save_model(
    params: Params,
    config: ModelConfig,
    directory: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
) -> None:
    """A Hugging Face folder holding `params` in `dtype` (None: in their own types), in files of at most 5 GB.

    With `base`, a model folder of the same architecture, its configuration and tokenizer files are copied byte for
    byte; without, config.json is generated. The folder is written elsewhere first, read back, and moved when whole.
    Beside the parameters, memory holds a tensor at a time. With several processes all of them call; the first writes.

    Raises:
        WeightError: `params` do not have the shapes of `config`, or `base` is another architecture.
        StorageError: the folder cannot be written, or does not hold what was written.

    >>> import jax, tempfile
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> from rdro_jax.models import init_params
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_model(init_params(config, jax.random.key(0)), config, folder.name)
    >>> sorted(file.name for file in Path(folder.name).iterdir())
    ['config.json', 'model.safetensors']
    >>> folder.cleanup()
    """
    leaves = flatten(params)
    _check_leaves(leaves, config)
    if base is not None:
        base = model_folder(base, weights=False)
        _check_base(base, config)
    entries, target = list(_entries(leaves, config, dtype)), Path(directory)
    if jax.process_index() > 0:
        for entry in entries:  # every process takes part in gathering what is spread over several
            entry.numbers()
    else:
        _save(entries, config, target, base)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {target}")


def _save(entries: list[Entry], config: ModelConfig, target: Path, base: Path | None) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target if target.exists() else target.parent  # one that is there may be a disk of its own
        with tempfile.TemporaryDirectory(dir=beside, prefix=f".{target.name}.") as temporary:
            _write_weights(entries, Path(temporary))
            _write_rest(config, entries[0].dtype, Path(temporary), base)
            _move(Path(temporary), target)
    except OSError as error:
        raise StorageError(
            f"{target}: cannot save the model: {error.strerror or error}; free space or choose another folder"
        ) from None


def _check_leaves(leaves: dict[str, Any], config: ModelConfig) -> None:
    wanted = flatten(abstract_params(config))
    for path in sorted(wanted.keys() ^ leaves.keys()):
        raise WeightError(f"params: {'missing' if path in wanted else 'unknown'} array {path!r} for this ModelConfig")
    for path, leaf in leaves.items():
        if leaf.shape != wanted[path].shape:
            raise WeightError(f"params: array {path!r} has shape {list(leaf.shape)}; wanted {list(wanted[path].shape)}")


def _check_base(base: Path, config: ModelConfig) -> None:
    """Raise where the copied config.json would describe other weights than those saved beside it."""
    found = replace(load_model_config(base), **{name: getattr(config, name) for name in NOT_SAVED})
    differing = [name for name in vars(config) if getattr(found, name) != getattr(config, name)]
    if differing:
        name = differing[0]
        raise WeightError(
            f"{base / 'config.json'}: {name} is {getattr(found, name)!r}, "
            f"the saved model's is {getattr(config, name)!r}; give the folder the model came from as base"
        )


def _entries(leaves: dict[str, Any], config: ModelConfig, dtype: str | None) -> Iterator[Entry]:
    """The Hugging Face tensors in the table's order, none computed yet."""
    for row in weight_table(config):
        leaf = leaves[row.ours]
        kind = np.dtype(leaf.dtype if dtype is None else jax.numpy.dtype(dtype))
        for place in row.places(leaf.shape):
            yield Entry(row.hf_name(place), row.hf_shape(leaf.shape), kind, partial(_numbers, row, leaf, place, kind))


def _numbers(row: Weight, leaf: Any, place: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One tensor as Hugging Face stores it."""
    if isinstance(leaf, np.ndarray):
        return np.asarray(row.transform.to_hf(leaf[place])).astype(dtype, copy=False)
    shards = leaf.addressable_shards
    if shards[0].data.shape == leaf.shape:  # one device has all of it: no second buffer to collect parts in
        return np.asarray(_take(shards[0].data, place, row.transform.to_hf)).astype(dtype, copy=False)
    numbers = np.empty(row.hf_shape(leaf.shape), dtype)
    if not leaf.is_fully_addressable:
        _gather(leaf, place, row, numbers)
        return numbers
    for shard in shards:
        stacked, inner = shard.index[: row.stack_axes], shard.index[row.stack_axes :]
        local = tuple(at - (part.start or 0) for at, part in zip(place, stacked, strict=True))
        held = all(0 <= at < size for at, size in zip(local, shard.data.shape, strict=False))
        if held and shard.replica_id == 0:
            numbers[row.transform.hf_index(inner)] = _take(shard.data, local, row.transform.to_hf)
    return numbers


def _gather(leaf: Array, place: tuple[int, ...], row: Weight, numbers: np.ndarray) -> None:
    """Fill `numbers` with one tensor of an array that several processes hold, on each of them.

    A block at a time, for every device gets a copy of what is gathered. A block takes the same rows of every part of
    the first axis, so that each device cuts its own share out of what it has.
    """
    shape, held = (sizes[row.stack_axes :] for sizes in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)))
    parts, rows = shape[0] // held[0], held[0]
    step = min(rows, max(1, GATHER_BYTES * rows // numbers.nbytes))
    ours = row.transform.to_ours(numbers).reshape(parts, rows, *shape[1:])  # a view: an axis split in two
    for start in range(0, rows, step):
        at = min(start, rows - step)  # the last block begins earlier: another shape would be another program
        block = multihost_utils.process_allgather(_take_rows(leaf, place, at, parts, step), tiled=True)
        ours[:, at : at + step] = block


@partial(jax.jit, static_argnums=(3, 4))
def _take_rows(leaf: Array, place: tuple[int, ...], at: int, parts: int, step: int) -> Array:
    """`step` rows from `at` on of each of `parts` equal parts of the first axis of one tensor, in our layout."""
    tensor = leaf[place]
    apart = tensor.reshape(parts, tensor.shape[0] // parts, *tensor.shape[1:])
    return jax.lax.dynamic_slice_in_dim(apart, at, step, axis=1)


@partial(jax.jit, static_argnums=2)
def _take(leaf: Array, place: tuple[int, ...], to_hf: Callable[[Any], Any]) -> Array:
    # A copy also where nothing is taken: jax keeps the host value of an array for as long as the array.
    return jax.numpy.copy(to_hf(leaf[place]))


def _write_weights(entries: list[Entry], folder: Path) -> None:
    """One safetensors file, or several with an index; read back."""
    shards = list(_plan_shards(entries))
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    digests: dict[str, bytes] = {}
    for name, shard in zip(names, shards, strict=True):
        digests |= write_tensors(folder / name, shard)
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(entry.nbytes for entry in entries)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    read_back = {name: tensor.digest() for name, tensor in open_tensors(folder).items()}
    if read_back != digests:
        wrong = next(name for name in digests if read_back.get(name) != digests[name])
        raise StorageError(f"{folder.parent}: tensor {wrong!r} reads back other than written; check the disk")


def _plan_shards(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Tensors in the table's order, in groups of at most `SHARD_BYTES` (a larger tensor stands alone)."""
    shard: list[Entry] = []
    for entry in entries:
        if shard and sum(other.nbytes for other in shard) + entry.nbytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(entry)
    yield shard


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_rest(config: ModelConfig, dtype: np.dtype, folder: Path, base: Path | None) -> None:
    """Configuration and tokenizer: the base's own files, or a generated config.json."""
    if base is not None:
        for file in sorted({file for pattern in COPIED for file in base.glob(pattern) if file.is_file()}):
            shutil.copyfile(file, folder / file.name)
        return
    family = FAMILIES[config.model_type]
    written = {"architectures": [family.architecture], **family.write_config(config), "torch_dtype": dtype.name}
    _write_json(folder / "config.json", written)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _move(source: Path, target: Path) -> None:
    """Put the finished files in place; weights of an earlier save that the new ones do not replace go."""
    target.mkdir(exist_ok=True)
    written = {file.name for file in source.iterdir()}
    for file in sorted(source.iterdir()):
        os.replace(file, target / file.name)
    for pattern in ("model*.safetensors", INDEX):
        for stale in target.glob(pattern):
            if stale.name not in written:
                stale.unlink()
