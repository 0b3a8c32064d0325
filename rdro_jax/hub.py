"""Models and data sets of the Hugging Face hub as folders on this machine.

Files come through the hub's own library and into its cache: what is there already is not downloaded again, a download
that broke off goes on, and with `HF_HUB_OFFLINE=1` nothing but the cache is used. What is private wants a token in the
environment variable `HF_TOKEN`.
"""

import os
from pathlib import Path
from typing import Literal

from rdro_jax.errors import RecordError, WeightError

HUB = "hub:"
"""What the path of a model or data set of the hub begins with."""
_KINDS, _PACKED = ("jsonl", "json", "ndjson", "parquet", "arrow", "array_record"), ("", ".gz", ".zst")
DATA_FILES = [f"*.{kind}{packed}" for kind in _KINDS for packed in _PACKED]
MODEL_FILES = ["*.json", "tokenizer*", "*.jinja", "*.txt"]
"""Configuration and tokenizer."""
WEIGHT_FILES = ["*.safetensors"]


def model_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The folder a path names; `hub:owner/name@revision` is a model of the hub, by default its main branch.

    Without `weights` only configuration and tokenizer are downloaded.

    Raises: WeightError where it cannot be had.
    """
    if not str(path).startswith(HUB):
        return Path(path)
    name, revision = hub_name(path)
    # Of the folders in a repository, none is the model: they hold other formats and intermediate states.
    return _download("model", name, revision, MODEL_FILES + WEIGHT_FILES * weights, ignored=["*/*"])


def hub_name(path: str | Path) -> tuple[str, str | None]:
    """Name and revision of a hub model as other tools take them; of a folder its path, and None.

    >>> hub_name("hub:owner/name@v1"), hub_name("models/base")
    (('owner/name', 'v1'), ('models/base', None))
    """
    if not str(path).startswith(HUB):
        return str(path), None
    name, _, revision = str(path).removeprefix(HUB).partition("@")
    return name, revision or None


def pin_model(path: str) -> str:
    """The path with the commit in place of a branch or tag, the model then being here; a folder's path as it is.

    Raises: WeightError where it cannot be had.
    """
    return f"{path.partition('@')[0]}@{model_folder(path).name}" if path.startswith(HUB) else path


def data_folder(name: str, revision: str | None) -> Path:
    """The folder of a data set of the hub at a revision: its data files, no code. Raises: RecordError."""
    return _download("dataset", name, revision, DATA_FILES, ignored=[])


def _download(
    kind: Literal["model", "dataset"], name: str, revision: str | None, wanted: list[str], ignored: list[str]
) -> Path:
    from huggingface_hub import snapshot_download  # here, because it takes half a second to import

    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=wanted, ignore_patterns=ignored or None
            )
        )
    except Exception as error:  # the hub's library and its transport raise what they please
        fault = WeightError if kind == "model" else RecordError
        token = "" if os.environ.get("HF_TOKEN") else f" (HF_TOKEN is not set; a private {kind} needs it)"
        raise fault(
            f"{HUB}{name}: cannot be downloaded at revision {revision or 'main'}: {ascii(str(error))[:160]}{token}; "
            f"check name, revision and network, or name a local {'folder' if kind == 'model' else 'file'}"
        ) from None
