"""What lies in a run folder is read as far as it is whole, and never half written."""

import json
import os

import pytest

from rdro_jax.run_files import read_metrics, seal, unseal, write_whole
from rdro_jax.train.metrics import MetricsWriter

LINES = [b'{"step": %d, "loss": 0.5}' % step for step in range(1, 6)]


@pytest.mark.parametrize(
    "bad",
    [b'{"step": 3, "lo', b'{"step": 3, "loss": "\xff"}', b"{}", b"7", b'{"step": "3"}', b"\0\0"],
    ids=["torn", "not UTF-8", "no step", "no object", "no number", "zeros"],
)
def test_a_bad_line_costs_itself_only(tmp_path, capsys, bad):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([*LINES[:2], bad, *LINES[3:]]) + b"\n")
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 4, 5]
    assert capsys.readouterr().err == f"warning: {file}:3: damaged line, left out\n"
    assert len(list(read_metrics(file))) == 4
    assert capsys.readouterr().err == ""  # told once
    MetricsWriter(file, resume_step=4).close()
    assert file.read_bytes().split() == b" ".join(LINES[i] for i in (0, 1, 3)).split()


def test_a_torn_last_line_is_told_too(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([*LINES[:2], LINES[2][:-3]]))
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
    assert capsys.readouterr().err == f"warning: {file}:3: torn line, left out\n"


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "told.json"
    write_whole(file, "first")

    def full(_):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "second")
    assert file.read_text() == "first"


def test_every_flipped_bit_of_a_sealed_file_is_seen():
    told = {"step": 3, "metrics": {"eval_loss": 0.25}, "files": {"a": "4:ff"}}
    text = json.dumps(seal(told)).encode()
    assert unseal(text) == told
    for bit in range(8 * len(text)):
        raw = bytearray(text)
        raw[bit // 8] ^= 1 << bit % 8
        assert unseal(bytes(raw)) in (None, told)  # a blank may become another one
