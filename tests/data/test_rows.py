"""Every fault a row can have is named by file, line and field, or counted: rows in = rows kept + rows reported."""

import gzip
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdro_jax.data import DataConfig, load_examples, sources
from rdro_jax.errors import RecordError

GOOD = {"prompt": "Say hello.", "completion": "hello", "label": True}
BAD = {"prompt": "Say hello.", "completion": "no", "label": False}


def load(path, tokenizer, **settings):
    label = settings.pop("require_label", True)
    config = DataConfig(train=path, **{"max_length": 256, **settings})
    return load_examples(path, tokenizer, config, require_label=label)


def without(field):
    return {key: value for key, value in GOOD.items() if key != field}


FAULTS = {
    "broken JSON": ('{"prompt": "a", ', "row: broken JSON"),
    "not JSON at all": ("prompt,completion,label", "row: broken JSON"),
    "array": ("[1, 2]", "row: not a JSON object"),
    "text": ('"hello"', "row: not a JSON object"),
    "null row": ("null", "row: not a JSON object"),
    "NaN": ('{"prompt": "a", "completion": "b", "label": NaN}', "row: broken JSON"),
    "huge integer": ('{"prompt": "a", "completion": "b", "label": ' + "9" * 5000 + "}", "row: broken JSON"),
    "nesting": ("[" * 100_000, "row: broken JSON"),
    "duplicate key": ('{"prompt": "a", "completion": "b", "label": true, "label": false}', "row: a key stands twice"),
    "raw NUL": (b'{"prompt": "a\x00", "completion": "b", "label": true}', "row: broken JSON"),
    "only NUL": (b"\x00\x00", "row: broken JSON"),
    "invalid UTF-8": (b'{"prompt": "caf\xe9", "completion": "b", "label": true}', "row: not valid UTF-8"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "row: not valid UTF-8"),
    "missing prompt": (without("prompt"), "prompt: missing"),
    "missing completion": (without("completion"), "completion: missing"),
    "missing label": (without("label"), "label: missing"),
    "null prompt": (GOOD | {"prompt": None}, "prompt: is null"),
    "null completion": (GOOD | {"completion": None}, "completion: is null"),
    "null label": (GOOD | {"label": None}, "label: is null"),
    "number for text": (GOOD | {"completion": 7}, "completion: must be text or a list of messages"),
    "empty completion": (GOOD | {"completion": ""}, "completion: is blank"),
    "blank completion": (GOOD | {"completion": " \n\t\u00a0"}, "completion: is blank"),
    "blank message": (GOOD | {"completion": [{"role": "assistant", "content": " "}]}, "completion: is blank"),
    "no messages": (GOOD | {"prompt": []}, "prompt: is an empty list"),
    "message not an object": (GOOD | {"prompt": ["hi"]}, "prompt: a message must be an object"),
    "message without role": (GOOD | {"prompt": [{"content": "hi"}]}, "prompt: a message needs a text `role`"),
    "message without content": (GOOD | {"prompt": [{"role": "user"}]}, "prompt: a message needs a text `content`"),
    "prompt by assistant": (
        GOOD | {"prompt": [{"role": "assistant", "content": "hi"}]},
        "prompt: ends with an assistant message",
    ),
    "completion by user": (
        GOOD | {"completion": [{"role": "user", "content": "hi"}]},
        "completion: must be one assistant message",
    ),
    "lone surrogate": (
        '{"prompt": "a", "completion": "\\ud83d", "label": true}',
        "completion: contains half a surrogate",
    ),
    "surrogate in a message": (
        '{"prompt": [{"role": "user", "content": "a", "x": ["\\udc00"]}], "completion": "b", "label": true}',
        "prompt: contains half a surrogate",
    ),
    "escaped NUL": (GOOD | {"prompt": "a\x00b"}, "prompt: contains a NUL"),
    "label 2": (GOOD | {"label": 2}, "label: must be"),
    "label 0.5": (GOOD | {"label": 0.5}, "label: must be"),
    "label yes": (GOOD | {"label": "yes"}, "label: must be"),
    "label list": (GOOD | {"label": [True]}, "label: must be"),
    "weight 0": (GOOD | {"weight": 0}, "weight: must be"),
    "weight below": (GOOD | {"weight": -1.0}, "weight: must be"),
    "weight text": (GOOD | {"weight": "1"}, "weight: must be"),
    "weight true": (GOOD | {"weight": True}, "weight: must be"),
    "weight huge": (GOOD | {"weight": 10**400}, "weight: must be"),
    "too long": (GOOD | {"prompt": "x" * 300}, "row: longer than max_length"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_line_and_field(fault, write_rows, chatml):
    line, complaint = FAULTS[fault]
    path = write_rows([GOOD, BAD, line, GOOD])
    with pytest.raises(RecordError) as error:
        load(path, chatml, truncation="error")
    first, summary = str(error.value).splitlines()
    assert first.startswith(f"{path}:3: {complaint}")
    assert first.isascii()
    assert len(first) < len(path) + 200
    assert summary.startswith(f"{path}: 1 of 4 rows cannot be used")
    assert error.value.exit_code == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_skipped_and_counted_when_asked(fault, write_rows, chatml):
    line, complaint = FAULTS[fault]
    examples = load(write_rows([GOOD, line, BAD]), chatml, truncation="error", on_bad_row="skip", max_bad_fraction=0.5)
    assert examples.report.rows == 3
    assert examples.report.kept == 2
    [(reason, count)] = examples.report.dropped.items()
    assert reason.startswith(complaint.split(",")[0])
    assert count == 1
    assert examples.desirable.tolist() == [True, False]


def test_lists_the_first_twenty_and_counts_the_rest(write_rows, chatml):
    path = write_rows([GOOD, *[GOOD | {"label": 7}] * 30, *["{"] * 5])
    with pytest.raises(RecordError) as error:
        load(path, chatml)
    lines = str(error.value).splitlines()
    assert len(lines) == 22
    assert [int(re.search(r":(\d+): ", line)[1]) for line in lines[:20]] == list(range(2, 22))
    assert lines[20] == "... and 15 more"
    assert "35 of 36 rows" in lines[21]
    assert "30 x label: must be" in lines[21]
    assert "5 x row: broken JSON" in lines[21]


def test_too_many_bad_rows_stop_a_run_that_skips(write_rows, chatml):
    path = write_rows([GOOD, BAD] * 9 + ["{", "{"])
    assert load(path, chatml, on_bad_row="skip", max_bad_fraction=0.1).report.kept == 18
    with pytest.raises(RecordError, match=r"max_bad_fraction=0\.09"):
        load(path, chatml, on_bad_row="skip", max_bad_fraction=0.09)


def test_rows_left_out_for_length_are_counted_not_bad(write_rows, chatml):
    rows = [GOOD, BAD, GOOD | {"prompt": "x" * 300}, BAD | {"completion": "x" * 300}, BAD | {"prompt": "x" * 300}]
    report = load(write_rows(rows), chatml, truncation="drop", max_bad_fraction=0.0).report
    assert report.dropped == {"row: longer than max_length": 3}
    assert (report.desirable.too_long, report.undesirable.too_long) == (1, 2)


@pytest.mark.parametrize(
    ("spelling", "desirable"),
    [*((yes, True) for yes in (True, 1, 1.0, "true", "True")), *((no, False) for no in (False, 0, 0.0, -1, "false"))],
)
def test_label_spellings(spelling, desirable, write_rows, chatml):
    examples = load(write_rows([GOOD | {"label": spelling}]), chatml, require_label=False)
    assert examples.desirable.tolist() == [desirable]


def test_label_may_be_missing_only_where_none_is_required(write_rows, chatml):
    path = write_rows([without("label"), BAD])
    assert load(path, chatml, require_label=False).desirable.tolist() == [True, False]
    with pytest.raises(RecordError, match="label: missing"):
        load(path, chatml)


@pytest.mark.parametrize("row", [GOOD, BAD])
def test_one_class_alone_is_refused_where_labels_matter(row, write_rows, chatml):
    path = write_rows([row, row])
    with pytest.raises(RecordError, match="in all 2 rows"):
        load(path, chatml)
    assert load(path, chatml, require_label=False).report.kept == 2


def test_byte_order_mark_crlf_and_blank_lines_change_nothing(write_rows, chatml):
    clean = load(write_rows([GOOD, BAD]), chatml)
    marked = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    messy = load(write_rows([marked, b"", b"  ", BAD], name="messy.jsonl", end=b"\r\n"), chatml)
    assert (messy.tokens.tolist(), messy.report.rows) == (clean.tokens.tolist(), 2)


def test_line_numbers_count_blank_lines(write_rows, chatml):
    with pytest.raises(RecordError, match=r"rows\.jsonl:4: "):
        load(write_rows([GOOD, b"", BAD, "{"]), chatml)


def test_last_line_needs_no_line_break(write_rows, chatml, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps(BAD))
    assert load(str(file), chatml).report.kept == 2


def test_gzip_is_read_by_content(write_rows, chatml, tmp_path):
    plain = write_rows([GOOD, BAD])
    for name in ("rows.jsonl.gz", "misnamed.jsonl"):
        packed = tmp_path / name
        with open(plain, "rb") as file:
            packed.write_bytes(gzip.compress(file.read()))
        assert load(str(packed), chatml).report.kept == 2


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "header only"])
def test_damaged_gzip_is_an_error_even_when_skipping(damage, chatml, tmp_path):
    whole = bytearray(
        gzip.compress(b"".join(json.dumps(GOOD | {"prompt": str(i)}).encode() + b"\n" for i in range(999)))
    )
    if damage == "bit flipped":
        whole[len(whole) // 2] ^= 1
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes({"truncated": whole[:-40], "bit flipped": whole, "header only": whole[:2]}[damage])
    with pytest.raises(RecordError, match=r"rows\.jsonl\.gz:\d+: .*gzip") as error:
        load(str(file), chatml, on_bad_row="skip", max_bad_fraction=1.0)
    assert "\n" not in str(error.value)


def test_missing_folder_and_empty_files_are_one_line(chatml, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    for name, complaint in (
        ("none.jsonl", "No such file"),
        ("folder", "a folder without data files"),
        ("empty.jsonl", "empty"),
    ):
        path = str(tmp_path / name)
        with pytest.raises(RecordError, match=complaint) as error:
            load(path, chatml)
        assert str(error.value).startswith(path)
        assert "\n" not in str(error.value)


def test_file_without_a_usable_row_is_refused(write_rows, chatml):
    for lines in (["{", "{"], [b"", b""]):
        with pytest.raises(RecordError):
            load(write_rows(lines), chatml, on_bad_row="skip", max_bad_fraction=1.0)


def test_over_long_line_is_a_fault_and_the_next_line_is_read(write_rows, chatml, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 2000)
    path = write_rows([GOOD, "x" * 5_000_000, BAD, "y" * 1999, "z" * 2000])
    report = load(path, chatml, on_bad_row="skip", max_bad_fraction=1.0).report
    assert report.kept == 2
    assert report.rows == 5
    assert sum(count for reason, count in report.dropped.items() if "line longer" in reason) == 2


def test_ignored_columns_are_said(write_rows, chatml):
    report = load(write_rows([GOOD | {"id": 1}, BAD | {"score": 2.0, "weight": 2}]), chatml).report
    assert report.ignored_columns == ("id", "score")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=9) | st.just("true"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=9)}),
    max_size=3,
)
COLUMNS = [
    "prompt",
    "completion",
    "label",
    "weight",
    "id",
    "messages",
    "system",
    "tools",
    "chat_template_kwargs",
    "alpha",
]
ROWS = st.dictionaries(st.sampled_from(COLUMNS), JSON_VALUES | MESSAGES)
SOUND_ROWS = st.fixed_dictionaries(
    {"prompt": st.text() | MESSAGES, "completion": st.text(min_size=1), "label": st.sampled_from([True, False, 0, -1])}
)
LINES = st.one_of(ROWS, SOUND_ROWS).map(lambda row: json.dumps(row).encode()) | st.binary(max_size=30)


@given(st.lists(LINES, min_size=1, max_size=8), st.sampled_from(["keep_end", "keep_start", "drop", "error"]))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_traceback_and_no_silent_loss(write_rows, chatml, lines, truncation):
    path = write_rows([GOOD, BAD, *lines])
    rows = sum(bool(line.strip()) for part in lines for line in part.split(b"\n")) + 2
    examples = load(path, chatml, max_length=64, truncation=truncation, on_bad_row="skip", max_bad_fraction=1.0)
    report = examples.report
    assert report.rows == rows
    assert report.rows == report.kept + sum(report.dropped.values())
    assert len(examples.desirable) == report.kept
    assert (examples.lengths > examples.prompt_lengths).all()
    assert (examples.prompt_lengths > 0).all()
    assert examples.lengths.max() <= 64


def test_held_out_prompts_stand_on_one_side(write_rows, chatml):
    rows = [GOOD | {"prompt": f"Question {i % 300}", "completion": f"{i}", "label": i % 2 == 0} for i in range(900)]
    path = write_rows([*rows, "{"])
    settings = {"heldout_fraction": 0.2, "on_bad_row": "skip"}
    config = DataConfig(train=path, **settings)
    sides = {side: load_examples(path, chatml, config, side=side) for side in ("train", "heldout", "all")}
    prompts = {side: set(examples.prompt_hashes.tolist()) for side, examples in sides.items()}
    assert not prompts["train"] & prompts["heldout"]
    assert prompts["train"] | prompts["heldout"] == prompts["all"]
    assert len(prompts["all"]) == 300
    assert abs(len(prompts["heldout"]) - 60) < 5 * 7  # five standard errors of 300 draws at 0.2
    for side in ("train", "heldout"):
        report = sides[side].report
        assert report.rows == 901 == report.kept + sum(report.dropped.values()) + report.elsewhere
    # Another file with some of the prompts: they fall on the same side.
    again = load_examples(write_rows(rows[100:250], "more.jsonl"), chatml, config, side="heldout")
    assert set(again.prompt_hashes.tolist()) <= prompts["heldout"]


def test_repeated_and_contradictory_rows_are_counted(write_rows, chatml):
    rows = [
        GOOD,
        GOOD,
        GOOD,
        BAD,
        BAD | {"label": True},
        GOOD | {"prompt": "x"},
        GOOD | {"prompt": "y", "label": False},
    ]
    report = load(write_rows(rows), chatml).report
    assert (report.duplicates, report.contradictory) == (2, 2)
    assert report.by_prompt.prompts == 3
    assert report.by_prompt.with_both_classes == 1
    assert report.by_prompt.alpha == {"p5": pytest.approx(0.08), "p50": 0.8, "p95": pytest.approx(0.98), "max": 1.0}
