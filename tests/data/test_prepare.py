"""The artefact is what `load_examples` gives, made once, in any number of processes, however often it is stopped."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from rdro_jax.data import DataConfig, Source, load_examples, make_loader, prepare, reading, tokenizer_hash
from rdro_jax.data import prepare as prepare_function
from rdro_jax.data.pack import pack_batch
from rdro_jax.errors import RecordError, StorageError

prepare_module = sys.modules[prepare_function.__module__]

ROWS = [
    {"prompt": f"Question {i % 60}?", "completion": f"Answer {i}." * (1 + i % 7), "label": i % 3 == 0, "extra": i}
    for i in range(200)
]
ROWS[7]["alpha"] = 0.25


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(reading, "ROWS_AT_ONCE", 30)


def config(path, **settings):
    return DataConfig(train=str(path), **{"max_length": 128, "workers": 1, **settings})


def assert_same(got, wanted):
    for name in wanted._fields:
        if name != "report":
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    for name in ("rows", "kept", "dropped", "desirable", "alpha", "ignored_columns", "sources", "by_prompt"):
        assert getattr(got.report, name) == getattr(wanted.report, name)


def test_artefact_is_what_loading_gives(write_rows, chatml, chatml_folder, tmp_path, small_parts):
    path = write_rows(ROWS)
    prepared = prepare(path, chatml_folder, config(path), tmp_path / "store")
    assert_same(prepared, load_examples(path, chatml, config(path)))
    assert isinstance(prepared.tokens, np.memmap)
    [home] = [folder for folder in (tmp_path / "store").iterdir() if folder.is_dir()]
    assert not list(home.glob("*.safetensors"))
    report = json.loads((home / "data_report.json").read_text())
    assert report["kept"] == 200
    assert report["by_prompt"]["prompts"] == 60
    assert report["tokenizer"] == json.loads((home / "meta.json").read_text())["tokenizer"]
    assert report["tokenizer"] == tokenizer_hash(chatml_folder)
    assert report["desirable"]["prompt_lengths"]["max"] == int(prepared.prompt_lengths.max())


def test_processes_give_the_same_without_a_main_guard(write_rows, chatml, chatml_folder, tmp_path):
    """A user's script has no main guard, and workers must not run it again."""
    path, store = write_rows(ROWS), tmp_path / "store"
    script = tmp_path / "script.py"
    script.write_text(
        f"print('once')\nfrom rdro_jax.data import DataConfig, prepare, reading\nreading.ROWS_AT_ONCE = 30\n"
        f"config = DataConfig(train={path!r}, max_length=128, workers=2)\n"
        f"print(prepare({path!r}, {str(chatml_folder)!r}, config, {str(store)!r}).report.kept)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["once", "200"], done.stderr
    assert_same(prepare(path, chatml_folder, config(path), store), load_examples(path, chatml, config(path)))


def test_twice_is_no_work_and_the_key_knows_what_matters(write_rows, chatml_folder, tmp_path, monkeypatch):
    path, lines = write_rows(ROWS), []
    prepare(path, chatml_folder, config(path), tmp_path, tell=lines.append)
    made = []
    real = prepare_module.make_part
    monkeypatch.setattr(prepare_module, "make_part", lambda *a: made.append(1) or real(*a))
    prepare(path, chatml_folder, config(path), tmp_path, tell=lines.append)
    packing = {"slots": 4, "batching": "natural", "on_bad_row": "skip", "workers": 2}
    prepare(path, chatml_folder, config(path, **packing), tmp_path, tell=lines.append)
    assert made == []
    assert [("nothing to do" in line) for line in lines] == [False, True, True]
    changes = [
        (path, {"config": config(path, max_length=100)}),
        (path, {"config": config(path, truncation="keep_start")}),
        (path, {"config": config(path, chat_template_kwargs=(("a", 1),))}),
        (path, {"layout": "unpaired", "require_label": False}),
        (Source(path, max_samples=100), {}),
        (write_rows([*ROWS[:-1], ROWS[0]], "other.jsonl"), {}),
        (path, {"config": config(path, heldout_fraction=0.3), "side": "train"}),
        (path, {"config": config(path, heldout_fraction=0.3), "side": "heldout"}),
    ]
    for number, (source, settings) in enumerate(changes, start=1):
        prepare(source, chatml_folder, **{"config": config(path), "folder": tmp_path, **settings})
        assert len(made) == number


@pytest.mark.parametrize("stopped_after", [1, 3, 6])
def test_a_stopped_preparation_goes_on(
    stopped_after, write_rows, chatml, chatml_folder, tmp_path, small_parts, monkeypatch
):
    path, made = write_rows(ROWS), []
    real = prepare_module.make_part

    def stop(*arguments):
        if len(made) == stopped_after:
            raise KeyboardInterrupt
        made.append(1)
        return real(*arguments)

    monkeypatch.setattr(prepare_module, "make_part", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, chatml_folder, config(path), tmp_path / "store")
    monkeypatch.setattr(prepare_module, "make_part", lambda *a: made.append(1) or real(*a))
    prepared = prepare(path, chatml_folder, config(path), tmp_path / "store")
    assert len(made) == 7  # 200 rows in parts of 30
    assert_same(prepared, load_examples(path, chatml, config(path)))


def test_killed_workers_leave_nothing_broken(write_rows, chatml, chatml_folder, tmp_path):
    """SIGKILL at whatever moment: the parts that are there are whole."""
    path, store = write_rows(ROWS * 20), tmp_path / "store"
    code = (
        "from rdro_jax.data import DataConfig, prepare, reading; reading.ROWS_AT_ONCE = 10\n"
        f"config = DataConfig(train={path!r}, max_length=128, workers=1)\n"
        f"prepare({path!r}, {str(chatml_folder)!r}, config, {str(store)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(store.glob("*.unfinished/part-*.safetensors"))) < 5:
        time.sleep(0.01)
    child.kill()
    child.wait()
    parts = sorted(store.glob("*.unfinished/part-*.safetensors"))
    assert len(parts) >= 5
    assert all(len(load_file(part)["lengths"]) == 10 for part in parts)


def test_bad_rows_stop_it_and_are_not_tokenised_again_to_be_skipped(
    write_rows, chatml_folder, tmp_path, small_parts, monkeypatch
):
    rows = [row | {"label": 7} if i in (3, 150) else row for i, row in enumerate(ROWS)]
    path = write_rows(rows)
    with pytest.raises(RecordError) as error:
        prepare(path, chatml_folder, config(path), tmp_path)
    first, second, summary = str(error.value).splitlines()
    assert first.startswith(f"{path}:4: label: must be")
    assert second.startswith(f"{path}:151: label: must be")
    assert "2 of 200 rows" in summary
    monkeypatch.setattr(prepare_module, "make_part", None)
    report = prepare(path, chatml_folder, config(path, on_bad_row="skip"), tmp_path).report
    assert (report.rows, report.kept, sum(report.dropped.values())) == (200, 198, 2)
    with pytest.raises(RecordError, match="2 of 200 rows"):  # what is prepared is judged each time it is opened
        prepare(path, chatml_folder, config(path), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "missing", "bit flipped"])
def test_a_damaged_artefact_is_refused(damage, write_rows, chatml_folder, tmp_path):
    path = write_rows(ROWS)
    prepare(path, chatml_folder, config(path), tmp_path)
    [tokens] = tmp_path.glob("*/tokens.npy")
    whole = bytearray(tokens.read_bytes())
    tokens.unlink()
    if damage == "truncated":
        tokens.write_bytes(whole[:-4])
    if damage == "bit flipped":
        whole[-1] ^= 1
        tokens.write_bytes(whole)
    with pytest.raises(StorageError, match=r"tokens\.npy: damaged since it was prepared; remove"):
        prepare(path, chatml_folder, config(path), tmp_path)


def test_an_unwritable_folder_is_one_line(write_rows, chatml_folder, tmp_path):
    (tmp_path / "file").touch()
    path = write_rows(ROWS)
    with pytest.raises(StorageError, match=r"set data\.prepared"):
        prepare(path, chatml_folder, config(path), tmp_path / "file" / "store")


def test_two_at_once_make_it_once(write_rows, chatml_folder, tmp_path):
    path, store = write_rows(ROWS), tmp_path / "store"
    code = (
        "from rdro_jax.data import DataConfig, prepare\n"
        f"config = DataConfig(train={path!r}, max_length=128, workers=1)\n"
        f"prepare({path!r}, {str(chatml_folder)!r}, config, {str(store)!r}, tell=print)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum("rows prepared" in text for text in said) == 1
    assert len([folder for folder in store.iterdir() if folder.is_dir()]) == 1


def test_pairs_and_splits(write_rows, chatml, chatml_folder, tmp_path, small_parts):
    pairs = [{"prompt": f"Q{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(70)]
    path = write_rows(pairs)
    for layout in ("paired", "unpaired"):
        prepared = prepare(path, chatml_folder, config(path), tmp_path / "store", layout=layout)
        assert_same(prepared, load_examples(path, chatml, config(path), layout=layout))
    split = config(path, heldout_fraction=0.3)
    for side in ("train", "heldout"):
        prepared = prepare(path, chatml_folder, split, tmp_path / "store", side=side)
        assert_same(prepared, load_examples(path, chatml, split, side=side))


def test_packing_report_is_the_loaders_own_packing(write_rows, chatml_folder, tmp_path):
    """Oracle: a loader's batches, counted."""
    path = write_rows(ROWS)
    settings = config(path, slots=3)
    prepared = prepare(path, chatml_folder, settings, tmp_path)
    loader = make_loader(prepared, global_batch_size=32, max_length=128, slots=3)
    rows = np.concatenate([batch.segment_ids[batch.segment_ids.any(axis=1)] for batch, _ in loader])
    packing = prepared.report.packing
    assert packing.rows == len(rows)
    assert packing.utilisation == pytest.approx((rows > 0).mean())
    assert packing.lost_tokens == (rows == 0).sum()
    assert packing.padded_utilisation == pytest.approx(prepared.lengths.mean() / 128)
    assert packing.examples_per_row == pytest.approx(200 / len(rows))


def test_batches_come_from_the_mapped_file(write_rows, chatml, chatml_folder, tmp_path):
    path = write_rows(ROWS)
    prepared, loaded = prepare(path, chatml_folder, config(path), tmp_path), load_examples(path, chatml, config(path))
    plan = np.array([[0, 5, -1], [199, 3, 2]])
    for got, wanted in zip(
        pack_batch(prepared, plan, max_length=384)[:7], pack_batch(loaded, plan, max_length=384)[:7], strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_a_packing_report_that_broke_off_or_was_damaged_is_not_believed(
    write_rows, chatml_folder, tmp_path, monkeypatch
):
    path = write_rows(ROWS[:20])

    def full(_):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((OSError, StorageError), match="full"):
            prepare(path, chatml_folder, config(path), tmp_path / "store")
    whole = prepare(path, chatml_folder, config(path), tmp_path / "store").report.packing
    assert whole.rows > 0
    [file] = tmp_path.glob("store/*/packing-*.json")
    text = file.read_text()
    for damaged in ("", text[:20], text.replace(f'"rows": {whole.rows}', '"rows": 77'), text.replace('"', "\udc80")):
        file.write_bytes(damaged.encode(errors="surrogateescape"))
        assert prepare(path, chatml_folder, config(path), tmp_path / "store").report.packing == whole


def test_a_damaged_part_is_made_again(write_rows, chatml, chatml_folder, tmp_path, small_parts, monkeypatch):
    """A bit that flips while a preparation lies unfinished would else be hashed as if it were right."""
    path = write_rows(ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "merge_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(path, chatml_folder, config(path), tmp_path / "store")
    parts = sorted(tmp_path.glob("store/*.unfinished/part-*.safetensors"))
    assert len(parts) == 7
    for part, at in zip(parts, (-1, 2000, 40, 8, 0, -9, -200), strict=True):
        raw = bytearray(part.read_bytes())
        raw[at] ^= 1
        part.write_bytes(raw)
    prepared = prepare(path, chatml_folder, config(path), tmp_path / "store")
    assert_same(prepared, load_examples(path, chatml, config(path)))
