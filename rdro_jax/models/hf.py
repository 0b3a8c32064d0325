"""Hugging Face folders <-> parameters, by the weight table: config.json and safetensors, one file or many.

Everything is checked by name, shape and type against the table before the first weight is read.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.decoder import Params, abstract_params
from rdro_jax.models.families import FAMILIES, weight_table
from rdro_jax.models.folder import INDEX, WEIGHTS, Tensor, open_tensors, read_json, same_numbers
from rdro_jax.models.weights import HEAD, Index, Weight, flatten, unflatten

SHARD_BYTES = 5_000_000_000
COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "chat_template*", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- load


def load_model(
    directory: str | Path, *, dtype: str = "float32", shardings: Params | None = None
) -> tuple[Params, ModelConfig]:
    """Parameters in `dtype` and the architecture of a Hugging Face folder.

    `shardings` is a tree of `Sharding` like the parameters: each device then reads only its own slices.

    Raises:
        WeightError: a file is missing or damaged, or a tensor is missing, unknown, duplicate, mis-shaped or not finite.

    >>> import jax, tempfile
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> from rdro_jax.models import init_params
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_model(init_params(config, jax.random.key(0)), config, folder.name)
    >>> params, config = load_model(folder.name, dtype="bfloat16")
    >>> params["embed_tokens"]["embedding"].shape, params["embed_tokens"]["embedding"].dtype.name  # [vocab, d_model]
    ((32, 8), 'bfloat16')
    >>> folder.cleanup()
    """
    folder = Path(directory)
    config = load_config(folder)
    with ExitStack() as files:
        tensors = open_tensors(folder, files)
        _drop_redundant(tensors, config)
        table, shapes = weight_table(config), flatten(abstract_params(config, dtype))
        _check(tensors, table, shapes, config, folder)
        placed = flatten(shardings) if shardings is not None else {}
        leaves = {row.ours: _load_leaf(row, shapes[row.ours], tensors, placed.get(row.ours)) for row in table}
    return unflatten(leaves), config


def load_config(directory: str | Path) -> ModelConfig:
    """The architecture in a folder's config.json, end-of-text tokens from generation_config.json where it has them."""
    folder = Path(directory)
    if not folder.is_dir():
        raise WeightError(
            f"{folder}: no such folder; wanted a Hugging Face model folder with config.json and {WEIGHTS}"
        )
    file = folder / "config.json"
    raw = read_json(file)
    try:
        config = _read_family(raw)
    except WeightError as error:
        raise WeightError(f"{file}: {error}") from None
    generation = folder / "generation_config.json"
    stops = read_json(generation).get("eos_token_id") if generation.is_file() else None
    return replace(config, eos_token_ids=_token_ids(raw.get("eos_token_id") if stops is None else stops, file))


def _read_family(raw: dict[str, Any]) -> ModelConfig:
    """The architecture, if this is a family we have."""
    known = ", ".join(FAMILIES)
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    if raw.get("auto_map"):
        raise WeightError("auto_map asks for code from the model folder; such code is never run; use a standard export")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise WeightError(f"model_type is {model_type!r}; supported: {known}")
    wanted = FAMILIES[model_type].architecture
    if architectures and wanted not in architectures:
        raise WeightError(f"architectures is {architectures}; wanted {wanted!r} for model_type {model_type!r}")
    return FAMILIES[model_type].read_config(raw)


def _token_ids(value: Any, file: Path) -> tuple[int, ...]:
    """One id, a list of ids or null, as a tuple."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise WeightError(f"{file}: eos_token_id is {value!r}; wanted a token id or a list of them")
    return tuple(ids)


def _drop_redundant(tensors: dict[str, Tensor], config: ModelConfig) -> None:
    """Remove what other tools store besides the weights: rotary frequencies, and the head of a tied model if equal."""
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    if not config.tie_word_embeddings or HEAD.hf not in tensors:
        return
    head, embedding = tensors.pop(HEAD.hf), tensors.get("model.embed_tokens.weight")
    if embedding is not None and not same_numbers(head, embedding):
        raise WeightError(f"{head.file}: tensor {HEAD.hf!r} differs from the embedding though config.json ties them")


def _check(
    tensors: dict[str, Tensor],
    table: tuple[Weight, ...],
    shapes: dict[str, jax.ShapeDtypeStruct],
    config: ModelConfig,
    folder: Path,
) -> None:
    """Raise unless the folder holds exactly the tensors of the table, in the shapes config.json implies."""
    wanted = {name: _hf_shape(row, shapes[row.ours].shape) for row in table for name in row.hf_names(config.n_layers)}
    for name, tensor in tensors.items():
        if name not in wanted:
            raise WeightError(
                f"{tensor.file}: unknown tensor {name!r} for a {config.model_type} of {config.n_layers} layers"
            )
        if tensor.shape != wanted[name]:
            raise WeightError(
                f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; "
                f"config.json implies {list(wanted[name])}"
            )
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise WeightError(f"{folder}: missing tensor {missing[0]!r} ({len(missing)} missing of {len(wanted)} wanted)")


def _hf_shape(row: Weight, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The shape one Hugging Face tensor of a row must have."""
    part = ours[1:] if row.stacked else ours
    return row.transform.to_hf(np.broadcast_to(np.empty(()), part)).shape


def _load_leaf(
    row: Weight, wanted: jax.ShapeDtypeStruct, tensors: dict[str, Tensor], sharding: jax.sharding.Sharding | None
) -> jax.Array:
    """One array of ours, whole on the default device or in slices on the devices of `sharding`."""
    read = _remember(lambda index: _read(row, wanted, tensors, index))
    if sharding is None:
        return jnp.asarray(read(tuple(slice(None) for _ in wanted.shape)))
    leaf = jax.make_array_from_callback(wanted.shape, sharding, read)
    return leaf.block_until_ready()  # before the next one is read, or all of them stay in host memory at once


def _remember(read: Callable[[Index], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """`read`, reading once what several devices hold copies of."""
    seen: dict[str, np.ndarray] = {}

    def once(index: Any) -> np.ndarray:
        key = str(index)  # slices are not hashable before Python 3.12
        if key not in seen:
            seen[key] = read(index)
        return seen[key]

    return once


def _read(row: Weight, wanted: jax.ShapeDtypeStruct, tensors: dict[str, Tensor], index: Index) -> np.ndarray:
    """The part of one of our arrays at `index`, read from exactly the parts of the tensors that hold it."""
    if not row.stacked:
        return _read_tensor(tensors[row.hf], row, index).astype(wanted.dtype)
    layers = range(wanted.shape[0])[index[0]]
    shape = tuple(len(range(size)[part]) for size, part in zip(wanted.shape[1:], index[1:], strict=True))
    result = np.empty((len(layers), *shape), wanted.dtype)
    for position, layer in enumerate(layers):
        result[position] = _read_tensor(tensors[row.hf.format(layer)], row, index[1:])
    return result


def _read_tensor(tensor: Tensor, row: Weight, index: Index) -> np.ndarray:
    """A part of one tensor in our layout; every number of it finite."""
    array = tensor.data[row.transform.hf_index(index)]
    if not np.isfinite(array).all():
        raise WeightError(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinity; the file is damaged")
    return row.transform.to_ours(array)


# ------------------------------------------------------------------------------------------------------------- save


def save_model(params: Params, config: ModelConfig, directory: str | Path, *, base: str | Path | None = None) -> None:
    """A Hugging Face folder holding `params` in their own types, in files of at most 5 GB.

    With `base`, a model folder of the same architecture, its configuration and tokenizer files are copied byte for
    byte; without, config.json is generated. The folder is written elsewhere first and moved when whole.

    Raises:
        WeightError: `params` do not have the shapes of `config`, or `base` is another architecture.
        StorageError: the folder cannot be written.

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
        _check_base(Path(base), config)
    target = Path(directory)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
            _write_weights(leaves, config, Path(temporary))
            _write_rest(config, leaves, Path(temporary), None if base is None else Path(base))
            _move(Path(temporary), target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{target}: cannot save the model: {reason}; free space or choose another folder") from None


def _check_leaves(leaves: dict[str, Any], config: ModelConfig) -> None:
    wanted = flatten(abstract_params(config))
    for path in sorted(wanted.keys() ^ leaves.keys()):
        raise WeightError(f"params: {'missing' if path in wanted else 'unknown'} array {path!r} for this ModelConfig")
    for path, leaf in leaves.items():
        if leaf.shape != wanted[path].shape:
            raise WeightError(f"params: array {path!r} has shape {list(leaf.shape)}; wanted {list(wanted[path].shape)}")


def _check_base(base: Path, config: ModelConfig) -> None:
    """Raise where the copied config.json would describe other weights than those saved beside it."""
    found = replace(
        load_config(base), compute_dtype=config.compute_dtype, remat=config.remat, eos_token_ids=config.eos_token_ids
    )
    differing = [name for name in vars(config) if getattr(found, name) != getattr(config, name)]
    if differing:
        name = differing[0]
        raise WeightError(
            f"{base / 'config.json'}: {name} is {getattr(found, name)!r}, "
            f"the saved model's is {getattr(config, name)!r}; give the folder the model came from as base"
        )


def _write_weights(leaves: dict[str, Any], config: ModelConfig, folder: Path) -> None:
    """One safetensors file, or several with an index."""
    shards = list(_plan_shards(_slots(leaves, config)))
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file({slot.name: _to_hf(slot) for slot in shard}, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {slot.name: name for name, shard in zip(names, shards, strict=True) for slot in shard}
        total = sum(slot.bytes for shard in shards for slot in shard)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


class Slot(NamedTuple):
    """One Hugging Face tensor to be written: its name, and where its numbers are."""

    name: str
    row: Weight
    leaf: Any
    layer: int
    bytes: int


def _slots(leaves: dict[str, Any], config: ModelConfig) -> Iterator[Slot]:
    for row in weight_table(config):
        leaf, names = leaves[row.ours], row.hf_names(config.n_layers)
        for layer, name in enumerate(names):
            yield Slot(name, row, leaf, layer, leaf.size * leaf.dtype.itemsize // len(names))


def _plan_shards(slots: Iterator[Slot]) -> Iterator[list[Slot]]:
    """Tensors in the table's order, in groups of at most `SHARD_BYTES` (a larger tensor stands alone)."""
    shard: list[Slot] = []
    for slot in slots:
        if shard and sum(other.bytes for other in shard) + slot.bytes > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(slot)
    yield shard


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _to_hf(slot: Slot) -> np.ndarray:
    """The tensor as Hugging Face stores it, contiguous."""
    array = np.asarray(slot.leaf[slot.layer] if slot.row.stacked else slot.leaf)
    return np.ascontiguousarray(slot.row.transform.to_hf(array))


def _write_rest(config: ModelConfig, leaves: dict[str, Any], folder: Path, base: Path | None) -> None:
    """Configuration and tokenizer: the base's own files, or a generated config.json."""
    if base is not None:
        for file in sorted({file for pattern in COPIED for file in base.glob(pattern) if file.is_file()}):
            shutil.copyfile(file, folder / file.name)
        return
    family = FAMILIES[config.model_type]
    dtype = str(leaves["embed_tokens/embedding"].dtype)
    written = family.write_config(config)
    _write_json(folder / "config.json", {"architectures": [family.architecture], **written, "torch_dtype": dtype})


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
