"""The reference store: found by content, never by position; a change of the reference finds nothing."""

import numpy as np
import pytest

from rdro_jax.data import ClassReport, DataReport, Examples
from rdro_jax.errors import StorageError, WeightError
from rdro_jax.train import reference
from rdro_jax.train.reference import fill_reference_logps, load_logps, reference_fingerprint, save_logps


def examples(count, seed=0):
    """Examples of which only the hashes matter here."""
    report = DataReport("-", count, count, {}, ClassReport(), ClassReport(), 0.5, count, 0, ())
    hashes = np.random.default_rng(seed).integers(0, 2**64, (count, 2), dtype=np.uint64)
    nothing = np.zeros(count)
    return Examples(nothing, np.arange(count + 1), nothing, nothing > 0, nothing, hashes, nothing > 0, report)


def subset(data, members):
    return data._replace(hashes=data.hashes[members])


def save(store, data, logps):
    save_logps(store, "f", data.hashes, np.asarray(logps, np.float32))


def test_log_probs_are_found_by_content(tmp_path):
    data = examples(6)
    save(tmp_path, data, range(6))
    shuffled = subset(data, [3, 1, 5])
    np.testing.assert_array_equal(load_logps(tmp_path, "f", shuffled), [3, 1, 5])
    assert np.isnan(load_logps(tmp_path, "another", data)).all()
    assert np.isnan(load_logps(tmp_path, "f", examples(3, seed=9))).all()


def test_the_whole_hash_is_the_key(tmp_path):
    """Examples whose hashes share a half are different examples."""
    data = examples(4)
    save(tmp_path, data, range(4))
    for half in (0, 1):
        crossed = data.hashes.copy()
        crossed[:, half] = np.roll(crossed[:, half], 1)
        assert np.isnan(load_logps(tmp_path, "f", data._replace(hashes=crossed))).all()


def test_only_what_is_missing_is_asked_for(tmp_path):
    data = examples(6)
    save(tmp_path, subset(data, [0, 1]), [7, 8])

    def score(known):
        np.testing.assert_array_equal(np.isnan(known), [False, False, True, True, True, True])
        yield np.arange(2, 6), np.full(4, 9, np.float32)

    np.testing.assert_array_equal(fill_reference_logps(tmp_path, "f", data, score), [7, 8, 9, 9, 9, 9])
    again = fill_reference_logps(tmp_path, "f", data, lambda _: pytest.fail("computed twice"))
    np.testing.assert_array_equal(again, [7, 8, 9, 9, 9, 9])


def test_what_was_scored_before_a_stop_is_not_scored_again(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SECONDS_PER_FILE", -1)
    data = examples(6)

    def score_and_stop(known):
        yield np.array([4, 0]), np.array([4, 0], np.float32)
        yield np.array([3]), np.array([3], np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_reference_logps(tmp_path, "f", data, score_and_stop)
    assert len(list((tmp_path / "f").iterdir())) == 2
    np.testing.assert_array_equal(load_logps(tmp_path, "f", data), [0, np.nan, np.nan, 3, 4, np.nan])


def test_no_flipped_bit_goes_unnoticed(tmp_path):
    """Every bit of a file of the store, one after the other; and the file in the folder of another reference."""
    data = examples(3)
    save(tmp_path, data, range(3))
    (part,) = (tmp_path / "f").iterdir()
    sound = part.read_bytes()
    for place in range(8 * len(sound)):
        flipped = bytearray(sound)
        flipped[place // 8] ^= 1 << place % 8
        part.write_bytes(flipped)
        with pytest.raises(StorageError, match=f"{part.name}: damaged"):
            load_logps(tmp_path, "f", data)
    part.write_bytes(sound[:-9])
    with pytest.raises(StorageError, match=f"{part.name}: damaged"):
        load_logps(tmp_path, "f", data)
    (tmp_path / "g").mkdir()
    part.write_bytes(sound)
    part.rename(tmp_path / "g" / part.name)
    with pytest.raises(StorageError, match="damaged"):
        load_logps(tmp_path, "g", data)


def test_a_reference_that_gives_no_number_is_a_fault_of_its_weights(tmp_path):
    with pytest.raises(WeightError, match=r"example 2 the log-prob nan"):
        fill_reference_logps(tmp_path, "f", examples(2), lambda _: iter([(np.arange(2), np.array([1, np.nan]))]))


def test_the_fingerprint_follows_weights_architecture_and_precision(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = reference_fingerprint(tmp_path, "float32", "float32")
    assert reference_fingerprint(tmp_path, "float32", "float32") == first
    assert reference_fingerprint(tmp_path, "float32", "bfloat16") != first
    assert reference_fingerprint(tmp_path, "bfloat16", "float32") != first
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert reference_fingerprint(tmp_path, "float32", "float32") != first
