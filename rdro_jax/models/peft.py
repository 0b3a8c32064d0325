"""Adapters <-> folders of PEFT: adapter_config.json and adapter_model.safetensors."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rdro_jax.errors import StorageError, WeightError
from rdro_jax.hub import hub_name
from rdro_jax.models.arrays import load_array
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.folder import Entry, open_file, read_json, write_tensors
from rdro_jax.models.hf import check_tensors
from rdro_jax.models.lora import Adapters, LoraConfig, abstract_adapters
from rdro_jax.models.weights import TRANSPOSE, Weight, flatten, unflatten

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNSUPPORTED = (
    "use_dora", "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern", "trainable_token_indices",
    "exclude_modules", "fan_in_fan_out", "lora_bias", "megatron_config", "target_parameters", "eva_config",
)  # fmt: skip
"""Settings of PEFT that change what an adapter computes and that we do not compute."""


def load_adapter_config(directory: str | Path) -> LoraConfig:
    """The settings of a PEFT folder.

    Raises:
        WeightError: the file is missing or damaged, or asks for what is not computed here.
    """
    file = Path(directory) / ADAPTER_CONFIG
    raw = read_json(file)
    if raw.get("peft_type") != "LORA":
        raise WeightError(f"{file}: peft_type is {raw.get('peft_type')!r}; wanted 'LORA'")
    for name in _UNSUPPORTED:
        if raw.get(name):
            raise WeightError(f"{file}: {name} is {raw[name]!r}; this is not computed here")
    if raw.get("bias", "none") != "none":
        raise WeightError(f"{file}: bias is {raw['bias']!r}; wanted 'none'")
    targets = raw.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise WeightError(f"{file}: target_modules is {targets!r}; wanted a list of names")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise WeightError(f"{file}: r is {rank!r} and lora_alpha is {alpha!r}; wanted positive numbers")
    names = tuple(sorted(targets))
    return LoraConfig(rank, float(alpha), float(raw.get("lora_dropout") or 0), names, bool(raw.get("use_rslora")))


def load_adapters(directory: str | Path, model: ModelConfig, *, shardings: Any = None) -> tuple[Adapters, LoraConfig]:
    """Adapters in float32 and settings of a PEFT folder made for this architecture.

    Raises:
        WeightError: a tensor is missing, unknown, mis-shaped or not finite.
    """
    folder = Path(directory)
    lora = load_adapter_config(folder)
    shapes = flatten(abstract_adapters(model, lora))
    tensors = {tensor.name: tensor for tensor in open_file(folder / ADAPTER_WEIGHTS)}
    rows = [_row(path) for path in shapes]
    check_tensors(tensors, tuple(rows), shapes, folder)
    placed = {} if shardings is None else flatten(shardings)
    leaves = {row.ours: load_array(row, shapes[row.ours], tensors, placed.get(row.ours)) for row in rows}
    return unflatten(leaves), lora


def save_adapters(adapters: Adapters, lora: LoraConfig, directory: str | Path, *, base: str | Path) -> None:
    """A PEFT folder of the adapters, which names `base`, a folder or a hub model, as what they were trained beside.

    With several processes all of them call; the first writes.

    Raises:
        StorageError: the folder cannot be written.
    """
    target, (name, revision) = Path(directory), hub_name(base)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": sorted(lora.target_modules),
        "use_rslora": lora.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    entries = _entries(flatten(adapters))
    if jax.process_index() > 0:
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target) as temporary:
            (Path(temporary) / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            write_tensors(Path(temporary) / ADAPTER_WEIGHTS, entries)
            for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
                os.replace(Path(temporary) / name, target / name)
    except OSError as error:
        raise StorageError(f"{target}: cannot save the adapter: {error.strerror or error}; free space") from None


def _entries(leaves: dict[str, Any]) -> list[Entry]:
    entries = []
    for path, leaf in leaves.items():
        here = getattr(leaf, "is_fully_addressable", True)
        row, host = _row(path), np.asarray(leaf if here else multihost_utils.process_allgather(leaf, tiled=True))
        for place in row.places(host.shape):
            numbers = np.ascontiguousarray(row.transform.to_hf(host[place]))
            entries.append(Entry(row.hf_name(place), numbers.shape, numbers.dtype, lambda numbers=numbers: numbers))
    return entries


def _row(path: str) -> Weight:
    """The row of one of our arrays, as `layers/self_attn/q_proj/lora_A`."""
    name = path.removeprefix("layers/").replace("/", ".")
    return Weight(f"base_model.model.model.layers.{{}}.{name}.weight", path, TRANSPOSE)
