"""Reference log-probabilities are data: computed once, stored by content, shared by every loss and every run.

The store is a folder; `<store>/<fingerprint>/` holds what one reference, in one precision, gave. An example is found by
the hash of its token ids and of where its completion begins, which is all that template and mask come down to, never by
its position in a file. Each file is named by the hash of its bytes, so that no bit of it changes unnoticed.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
import xxhash
from jaxtyping import Float32, UInt64

from rdro_jax.data import Examples
from rdro_jax.errors import StorageError, WeightError
from rdro_jax.hub import model_folder
from rdro_jax.models.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rdro_jax.parallel import array_from_first, is_first
from rdro_jax.train.console import say
from rdro_jax.train.scoring import Scored

FORWARD_VERSION = 2
"""Raised when a change of ours alters the log-probs of an unchanged model, so that no stored number outlives it."""
SECONDS_PER_FILE = 60.0
"""The most work that is lost when scoring is stopped."""

Logps = Float32[np.ndarray, "examples"]


def reference_fingerprint(
    directory: str | Path, dtype: str, compute_dtype: str, adapter: str | Path | None = None
) -> str:
    """Identity of a reference: its weights, architecture and adapter, the precisions it is held in and computes in."""
    digest = xxhash.xxh3_128(f"{FORWARD_VERSION} {dtype} {compute_dtype}".encode())
    folder = model_folder(directory)
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    if adapter is not None:
        files += [Path(adapter) / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def load_logps(store: Path, fingerprint: str, examples: Examples) -> Logps:
    """Stored log-prob of every example, in nats; NaN where the store has none. Raises: StorageError for a bad file."""
    known: dict[bytes, np.float32] = {}
    for part in sorted((store / fingerprint).glob("*.safetensors")):
        content = part.read_bytes()
        if _name(fingerprint, content) != part.name:
            raise StorageError(
                f"{part}: damaged: not what was written there; remove it and its log-probs are computed again"
            )
        arrays = safetensors.numpy.load(content)
        known |= dict(zip(_keys(arrays["hashes"]), arrays["logps"], strict=True))
    return np.array([known.get(key, np.nan) for key in _keys(examples.hashes)], np.float32)


def save_logps(store: Path, fingerprint: str, hashes: UInt64[np.ndarray, "examples 2"], logps: Logps) -> None:
    """Write log-probs as one more file, in one move. Raises: StorageError where it cannot be written."""
    content = safetensors.numpy.save({"hashes": np.ascontiguousarray(hashes), "logps": logps})
    part = store / fingerprint / _name(fingerprint, content)
    unfinished = part.with_suffix(f".{os.getpid()}.tmp")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(part)
    except OSError as error:
        raise StorageError(f"{part}: cannot be written: {error.strerror}; free space or set reference.store") from None


def fill_reference_logps(
    store: Path, fingerprint: str, examples: Examples, score: Callable[[Logps], Iterator[Scored]]
) -> Logps:
    """Reference log-prob of every example, in nats: from the store, and through `score` what it lacks.

    `score` receives what is known, NaN elsewhere, and yields the rest bit by bit; what it has yielded is on disk within
    a minute, so that a run that was stopped goes on from there. Of several processes the first reads and writes the
    store, and all score what it lacks.

    Raises: StorageError for a damaged or unwritable store, WeightError where the reference gives no number.
    """
    logps = array_from_first(lambda: load_logps(store, fingerprint, examples))
    missing, all_of = int(np.isnan(logps).sum()), f"{len(logps)} reference log-probs"
    if not missing:
        say(f"{store / fingerprint}: has all of {all_of}")
        return logps
    say(f"{store / fingerprint}: has {len(logps) - missing} of {all_of}; computing the others")
    waiting, since = [], time.monotonic()
    for members, scored in score(logps.copy()):
        _check_numbers(members, scored)
        logps[members] = scored
        waiting.append(members)
        if time.monotonic() - since > SECONDS_PER_FILE:
            _save(store, fingerprint, examples, logps, waiting)
            waiting, since = [], time.monotonic()
    _save(store, fingerprint, examples, logps, waiting)
    return logps


def _check_numbers(members: np.ndarray, scored: Logps) -> None:
    for index, value in zip(members, scored, strict=True):
        if not np.isfinite(value):
            raise WeightError(
                f"reference: gives example {index + 1} the log-prob {value}; wanted a number: look at its weights, or "
                "compute in float32 (model.compute_dtype)"
            )


def _save(store: Path, fingerprint: str, examples: Examples, logps: Logps, parts: list[np.ndarray]) -> None:
    if parts and is_first():
        members = np.concatenate(parts)
        save_logps(store, fingerprint, examples.hashes[members], logps[members])
        left = int(np.isnan(logps).sum())
        say(f"{store / fingerprint}: computed {len(members)} reference log-probs; {left} are left")


def _name(fingerprint: str, content: bytes) -> str:
    """Of a file with this content under this reference: moved to another one's folder it is as bad as damaged."""
    return f"{xxhash.xxh3_128_hexdigest(fingerprint.encode() + content)}.safetensors"


def _keys(hashes: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in hashes]
