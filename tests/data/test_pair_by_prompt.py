"""Pairs made of unpaired rows, by hand."""

import pytest

from rdro_jax.data import DataConfig, load_examples, make_loader, prepare
from rdro_jax.errors import RecordError


def row(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


ROWS = [
    row("A", "good 1", True),
    row("A", "good 2", True),
    row("B", "bad", False),
    row("A", "bad 1", False),
    row("C", "good", True),
    row("A", "bad 2", False),
    row("A", "bad 3", False),
    row("B", "good", True),
]
PAIRS = [("A", "good 1", "bad 1"), ("A", "good 2", "bad 2"), ("B", "good", "bad")]


def paired(path, tokenizer, **settings):
    config = DataConfig(train=path, pair_by_prompt=True, **{"max_length": 256, **settings})
    return load_examples(path, tokenizer, config, layout="paired")


def test_pairs_are_those_of_paired_rows(write_rows, chatml):
    made = paired(write_rows(ROWS), chatml)
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    wanted = paired(write_rows(rows, "pairs.jsonl"), chatml)
    assert made.tokens.tolist() == wanted.tokens.tolist()
    assert made.hashes.tolist() == wanted.hashes.tolist()
    assert made.desirable.tolist() == [True, False] * 3
    assert (made.paired, made.split_pairs) == (True, False)


def test_rows_without_a_counterpart_are_counted(write_rows, chatml):
    report = paired(write_rows(ROWS), chatml).report
    assert (report.rows, report.kept, report.format, report.layout) == (8, 6, "unpaired", "paired")
    [(reason, count)] = report.dropped.items()
    assert (reason.partition(":")[0], count) == ("row", 2)
    assert (report.desirable.kept, report.undesirable.kept, report.alpha) == (3, 3, 0.5)


def test_both_halves_fit_into_one_row(write_rows, plain):
    rows = [row("abcdefghij", "0123456789", True), row("abcdefghij", "9876543210", False)]
    made = paired(write_rows(rows), plain, max_length=40)
    assert made.lengths.tolist() == [20, 20]
    batch, members = make_loader(made, global_batch_size=1, max_length=40, slots=2)[0]
    assert members.tolist() == [[0, 1]]
    assert (batch.segment_ids > 0).all()


def test_prompts_cut_differently_are_no_pair(write_rows, plain):
    rows = [
        row("abcdefghij", "0123456789", True),
        row("abcdefghij", "9", False),
        *(row("x", y, y == "b") for y in "ab"),
    ]
    report = paired(write_rows(rows), plain, max_length=40).report
    assert (report.rows, report.kept, sum(report.dropped.values())) == (4, 2, 2)


def test_one_completion_with_both_labels_is_no_pair(write_rows, chatml):
    rows = [row("A", "same", True), row("A", "same", False), row("B", "x", True), row("B", "y", False)]
    assert paired(write_rows(rows), chatml).report.kept == 2


def test_faults_say_what_to_do(write_rows, chatml):
    path = write_rows(ROWS)
    with pytest.raises(RecordError, match=r"data\.pair_by_prompt=true"):
        load_examples(path, chatml, DataConfig(train=path), layout="paired")
    with pytest.raises(RecordError, match="no prompt has a desirable and an undesirable completion"):
        paired(write_rows([row("A", "x", True), row("B", "y", False)]), chatml)


def test_prepared_pairs_are_the_same(write_rows, chatml, chatml_folder, tmp_path):
    path = write_rows(ROWS)
    config = DataConfig(train=path, pair_by_prompt=True, max_length=256, workers=1)
    for _ in range(2):
        prepared = prepare(path, chatml_folder, config, tmp_path, layout="paired")
        assert prepared.tokens.tolist() == paired(path, chatml).tokens.tolist()
        assert sum(prepared.report.dropped.values()) == 2
