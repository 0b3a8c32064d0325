"""Hugging Face folders -> parameters, by the weight table: config.json and safetensors, one file or many.

Everything is checked by name, shape and type against the table before the first weight is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rdro_jax.errors import WeightError
from rdro_jax.hub import model_folder
from rdro_jax.models.arrays import Advance, load_array
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.decoder import Params, abstract_params
from rdro_jax.models.families import FAMILIES, weight_table
from rdro_jax.models.folder import WEIGHTS, Tensor, open_tensors, read_json
from rdro_jax.models.weights import HEAD, Weight, flatten, unflatten

WORTH_A_BAR = 1_000_000_000
"""Bytes of weights from which a progress bar is shown."""


def load_model(
    directory: str | Path, *, dtype: str = "float32", shardings: Params | None = None
) -> tuple[Params, ModelConfig]:
    """Parameters in `dtype` and the architecture of a Hugging Face folder, or of `hub:owner/name@revision`.

    `shardings` is a tree of `Sharding` like the parameters: each process then reads what its own devices hold, and
    nothing else. Beside the arrays, memory holds a tensor of the file at a time.

    Raises:
        WeightError: a file is missing or damaged, or a tensor is missing, unknown, duplicate, mis-shaped or not finite.

    >>> import jax, tempfile
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> from rdro_jax.models import init_params, save_model
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_model(init_params(config, jax.random.key(0)), config, folder.name)
    >>> params, config = load_model(folder.name, dtype="bfloat16")
    >>> params["embed_tokens"]["embedding"].shape, params["embed_tokens"]["embedding"].dtype.name  # [vocab, d_model]
    ((32, 8), 'bfloat16')
    >>> folder.cleanup()
    """
    folder = model_folder(directory)
    config = load_model_config(folder)
    tensors = open_tensors(folder)
    _drop_redundant(tensors, config)
    table, shapes = weight_table(config), flatten(abstract_params(config, dtype=dtype))
    check_tensors(tensors, table, shapes, folder)
    placed = flatten(shardings) if shardings is not None else {}
    total = sum(tensor.nbytes for tensor in tensors.values())
    with _progress(folder.name, total) as advance:
        leaves = {row.ours: load_array(row, shapes[row.ours], tensors, placed.get(row.ours), advance) for row in table}
    return unflatten(leaves), config


@contextmanager
def _progress(title: str, total: int) -> Iterator[Advance]:
    """A bar of bytes read, on one process, for models one waits for."""
    columns = (TextColumn("loading {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = total < WORTH_A_BAR or jax.process_index() > 0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def load_model_config(directory: str | Path) -> ModelConfig:
    """The architecture in a folder's config.json, end-of-text tokens from generation_config.json where it has them.

    Raises:
        WeightError: there is no such folder, or its configuration asks for what is not computed here.
    """
    folder = model_folder(directory, weights=False)
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
    if embedding is not None and head.digest() != embedding.digest():
        raise WeightError(f"{head.file}: tensor {HEAD.hf!r} differs from the embedding though config.json ties them")


def check_tensors(
    tensors: dict[str, Tensor], table: tuple[Weight, ...], shapes: dict[str, jax.ShapeDtypeStruct], folder: Path
) -> None:
    """Raise unless the folder holds exactly the tensors of the table, in the shapes the configuration implies."""
    wanted = {}
    for row in table:
        ours = shapes[row.ours].shape
        wanted |= dict.fromkeys(map(row.hf_name, row.places(ours)), row.hf_shape(ours))
    for name, tensor in tensors.items():
        if name not in wanted:
            raise WeightError(f"{tensor.file}: unknown tensor {name!r} for the configured architecture")
        if tensor.shape != wanted[name]:
            raise WeightError(
                f"{tensor.file}: tensor {name!r} has shape {list(tensor.shape)}; "
                f"the configuration implies {list(wanted[name])}"
            )
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise WeightError(f"{folder}: missing tensor {missing[0]!r} ({len(missing)} missing of {len(wanted)} wanted)")
