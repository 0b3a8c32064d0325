"""Data sets of the Hugging Face hub, as folders on this machine."""

import os
from pathlib import Path

from rdro_jax.data.records import shorten
from rdro_jax.errors import RecordError

PATTERNS = ["*.jsonl*", "*.json", "*.json.gz", "*.parquet", "*.arrow"]


def download(name: str, revision: str | None) -> Path:
    """The folder of a hub data set at a revision: its data files, no code. From the local cache where it is there.

    The token of a private data set is read from the environment (`HF_TOKEN`).

    Raises: RecordError where it cannot be had.
    """
    from huggingface_hub import snapshot_download  # here, because it takes half a second to import

    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=PATTERNS))
    except Exception as error:  # the hub's library and its transport raise what they please
        token = "" if os.environ.get("HF_TOKEN") else " (HF_TOKEN is not set; a private data set needs it)"
        raise RecordError(
            f"hub:{name}: cannot be downloaded at revision {revision or 'main'}: {shorten(str(error), 160)}{token}; "
            "check name, revision and network, or name a local file"
        ) from None
