"""The reference store: found by content, never by position; a change of the reference finds nothing."""

import numpy as np
import pytest

from rdro_jax.data import ClassReport, DataReport, Examples
from rdro_jax.errors import StorageError
from rdro_jax.train.reference import fill_reference_logps, load_logps, reference_fingerprint, save_logps


def examples(count, seed=0):
    """Examples of which only the hashes matter here."""
    report = DataReport("-", count, count, {}, ClassReport(), ClassReport(), 0.5, count, 0, ())
    hashes = np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)
    nothing = np.zeros(count)
    return Examples(nothing, np.arange(count + 1), nothing, nothing > 0, nothing, hashes, nothing > 0, report)


def subset(data, members):
    return data._replace(hashes=data.hashes[members])


def test_log_probs_are_found_by_content(tmp_path):
    data = examples(6)
    save_logps(tmp_path, "f", data, np.arange(6, dtype=np.float32))
    shuffled = subset(data, [3, 1, 5])
    np.testing.assert_array_equal(load_logps(tmp_path, "f", shuffled), [3, 1, 5])
    assert np.isnan(load_logps(tmp_path, "another", data)).all()
    assert np.isnan(load_logps(tmp_path, "f", examples(3, seed=9))).all()


def test_the_whole_hash_is_the_key(tmp_path):
    """Examples whose hashes share a half are different examples."""
    data = examples(4)
    save_logps(tmp_path, "f", data, np.arange(4, dtype=np.float32))
    for half in (0, 1):
        crossed = data.hashes.copy()
        crossed[:, half] = np.roll(crossed[:, half], 1)
        assert np.isnan(load_logps(tmp_path, "f", data._replace(hashes=crossed))).all()


def test_only_what_is_missing_is_asked_for(tmp_path):
    data = examples(6)
    save_logps(tmp_path, "f", subset(data, [0, 1]), np.array([7, 8], np.float32))

    def score(known):
        np.testing.assert_array_equal(np.isnan(known), [False, False, True, True, True, True])
        return np.where(np.isnan(known), 9, known).astype(np.float32)

    np.testing.assert_array_equal(fill_reference_logps(tmp_path, "f", data, score), [7, 8, 9, 9, 9, 9])
    again = fill_reference_logps(tmp_path, "f", data, lambda _: pytest.fail("computed twice"))
    np.testing.assert_array_equal(again, [7, 8, 9, 9, 9, 9])


def test_a_damaged_file_is_named(tmp_path):
    save_logps(tmp_path, "f", examples(4), np.zeros(4, np.float32))
    (part,) = (tmp_path / "f").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(StorageError, match=f"{part.name}: damaged"):
        load_logps(tmp_path, "f", examples(4))


def test_the_fingerprint_follows_weights_architecture_and_precision(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = reference_fingerprint(tmp_path, "float32")
    assert reference_fingerprint(tmp_path, "float32") == first
    assert reference_fingerprint(tmp_path, "bfloat16") != first
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert reference_fingerprint(tmp_path, "float32") != first
