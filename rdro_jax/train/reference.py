"""Reference log-probabilities are data: computed once, stored by content, shared by every loss and every run.

The store is a folder; `<store>/<fingerprint>/` holds what one reference, in one precision, gave. An example is found
by the hash of its token ids and of where its completion begins, never by its position in a file.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash
from jaxtyping import Float32
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rdro_jax.data import Examples
from rdro_jax.errors import StorageError
from rdro_jax.hub import model_folder
from rdro_jax.models.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rdro_jax.parallel import array_from_first, from_first

FORWARD_VERSION = 1
"""Raised when a change of ours alters the log-probs of an unchanged model, so that no stored number outlives it."""


def reference_fingerprint(directory: str | Path, compute_dtype: str, adapter: str | Path | None = None) -> str:
    """Identity of a reference: its weights, its architecture, its adapter, the precision it computes in."""
    digest = xxhash.xxh3_128(f"{FORWARD_VERSION} {compute_dtype}".encode())
    folder = model_folder(directory)
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    if adapter is not None:
        files += [Path(adapter) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def load_logps(store: Path, fingerprint: str, examples: Examples) -> Float32[np.ndarray, "examples"]:
    """Stored log-prob of every example, in nats; NaN where the store has none."""
    known: dict[bytes, np.float32] = {}
    for part in sorted((store / fingerprint).glob("*.safetensors")):
        try:
            arrays = load_file(part)
        except SafetensorError as error:
            raise StorageError(f"{part}: damaged ({error}); remove it and its log-probs are computed again") from None
        known |= dict(zip(_keys(arrays["hashes"]), arrays["logps"], strict=True))
    return np.array([known.get(key, np.nan) for key in _keys(examples.hashes)], np.float32)


def save_logps(store: Path, fingerprint: str, examples: Examples, logps: Float32[np.ndarray, "examples"]) -> None:
    """Write the log-probs of a data set as one file named by its content, in one move."""
    folder = store / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{xxhash.xxh3_64_hexdigest(examples.hashes.tobytes())}.safetensors"
    unfinished = part.with_suffix(".tmp")
    try:
        save_file({"hashes": examples.hashes, "logps": logps}, unfinished)
    except SafetensorError as error:
        raise StorageError(f"{unfinished}: cannot be written ({error}); free space or set reference.store") from None
    unfinished.replace(part)


def fill_reference_logps(
    store: Path,
    fingerprint: str,
    examples: Examples,
    score: Callable[[Float32[np.ndarray, "examples"]], Float32[np.ndarray, "examples"]],
) -> Float32[np.ndarray, "examples"]:
    """Reference log-prob of every example, in nats: from the store, and through `score` what it lacks.

    `score` receives what is known, NaN elsewhere, and returns all of it. Of several processes the first reads and
    writes the store, and all score what it lacks.
    """
    logps = array_from_first(lambda: load_logps(store, fingerprint, examples))
    if np.isnan(logps).any():
        logps = score(logps)
        assert np.isfinite(logps).all(), "the reference gave a non-finite log-prob"
        from_first(lambda: save_logps(store, fingerprint, examples, logps))
    return logps


def _keys(hashes: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in hashes]
