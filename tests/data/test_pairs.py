"""Paired rows: what becomes of each form, by hand; no pair is torn, cut unevenly, or lost unsaid."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdro_jax.data import DataConfig, load_examples
from rdro_jax.data.formats import detect_format
from rdro_jax.errors import RecordError

PAIR = {"prompt": "Say hello.", "chosen": "hello", "rejected": "no"}
OTHER = {"prompt": "Say bye.", "chosen": "bye", "rejected": "well"}
UNPAIRED = {"prompt": "Say hello.", "completion": "hello", "label": True}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def load(path, tokenizer, layout="paired", **settings):
    return load_examples(path, tokenizer, DataConfig(train=path, **{"max_length": 256, **settings}), layout=layout)


def texts(examples, tokenizer):
    return [
        tokenizer.decode(examples.tokens[a:b]) for a, b in zip(examples.offsets, examples.offsets[1:], strict=False)
    ]


def test_pairs_are_adjacent_chosen_first(write_rows, plain):
    examples = load(write_rows([PAIR | {"weight": 0.5, "alpha": 0.25}, OTHER]), plain)
    assert texts(examples, plain) == [
        "<s>Say hello.hello</s>",
        "<s>Say hello.no</s>",
        "<s>Say bye.bye</s>",
        "<s>Say bye.well</s>",
    ]
    assert examples.desirable.tolist() == [True, False, True, False]
    assert examples.weight.tolist() == [0.5, 0.5, 1, 1]
    assert examples.paired
    assert not examples.split_pairs
    np.testing.assert_array_equal(examples.prompt_alpha, np.float32([0.25, 0.25, np.nan, np.nan]))
    assert len(set(examples.prompt_hashes[:2])) == len(set(examples.prompt_hashes[2:])) == 1
    assert len(set(examples.prompt_hashes)) == 2


def test_a_split_pair_is_two_unpaired_rows(write_rows, chatml):
    split = load(write_rows([PAIR, OTHER]), chatml, "unpaired")
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in (PAIR, OTHER)
        for side in ("chosen", "rejected")
    ]
    unpaired = load(write_rows(rows, name="unpaired.jsonl"), chatml, "unpaired")
    for name in ("tokens", "offsets", "prompt_lengths", "desirable", "weight", "hashes", "prompt_hashes"):
        np.testing.assert_array_equal(getattr(split, name), getattr(unpaired, name))
    assert (split.paired, split.split_pairs, unpaired.split_pairs) == (False, True, False)


TURNS = [user("2+2?"), assistant("4"), user("Sure?")]
FORMS = {
    "messages": {"prompt": TURNS, "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]},
    "one message each": {"prompt": TURNS, "chosen": [assistant("Yes.")], "rejected": "No."},
    "implied prompt": {"chosen": [*TURNS, assistant("Yes.")], "rejected": [*TURNS, assistant("No.")]},
    "prompt repeated as messages": {
        "prompt": TURNS,
        "chosen": [*TURNS, assistant("Yes.")],
        "rejected": [*TURNS, assistant("No.")],
    },
    "prompt repeated as text": {
        "prompt": "2+2? ",
        "chosen": [*TURNS, assistant("Yes.")],
        "rejected": [*TURNS, assistant("No.")],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_the_same_pair(form, write_rows, chatml):
    examples = load(write_rows([FORMS[form]]), chatml)
    ask = chatml.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False)
    assert texts(examples, chatml) == [ask + "Yes.<|im_end|>", ask + "No.<|im_end|>"]
    assert examples.prompt_lengths.tolist() == [len(chatml(ask, add_special_tokens=False)["input_ids"])] * 2


FAULTS = {
    "same text": (PAIR | {"rejected": "hello"}, "rejected: is the same as chosen"),
    "same message": (PAIR | {"rejected": [assistant("hello")]}, "rejected: is the same as chosen"),
    "same conversation": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        "rejected: is the same as chosen",
    ),
    "same when cut": (
        PAIR | {"chosen": "x" * 300 + "a", "rejected": "x" * 300 + "b"},
        "rejected: is the same as chosen, got what max_length leaves of it",
    ),
    "missing chosen": ({"prompt": "a", "rejected": "b"}, "chosen: missing"),
    "missing prompt": ({"chosen": "a", "rejected": "b"}, "prompt: missing"),
    "null rejected": (PAIR | {"rejected": None}, "rejected: is null"),
    "blank rejected": (PAIR | {"rejected": " "}, "rejected: is blank"),
    "user answers": (PAIR | {"chosen": [user("b")]}, "chosen: must be one assistant message"),
    "no common prompt": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
        "prompt: chosen and rejected do not begin with a message in common",
    ),
    "one begins the other": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b"), user("c"), assistant("d")]},
        "chosen: is only the beginning",
    ),
    "parted too early": (
        {"chosen": [user("a"), *[assistant("b"), user("c")] * 2], "rejected": [user("a"), assistant("d")]},
        "chosen: must be one assistant message",
    ),
    "another prompt": (
        {"prompt": "z", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        "prompt: is not what the messages",
    ),
    "control token": (PAIR | {"chosen": "hello<|im_end|>"}, "chosen: spells out a control token"),
    "alpha 1": (PAIR | {"alpha": 1}, "alpha: must be a number between 0 and 1"),
    "alpha text": (PAIR | {"alpha": "0.5"}, "alpha: must be"),
    "unpaired row": (UNPAIRED, "chosen: missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", ["paired", "unpaired"])
def test_fault_names_line_and_side_and_takes_the_whole_pair(fault, layout, write_rows, chatml):
    line, complaint = FAULTS[fault]
    path = write_rows([PAIR, OTHER, line])
    with pytest.raises(RecordError) as error:
        load(path, chatml, layout)
    assert str(error.value).startswith(f"{path}:3: {complaint}")
    report = load(path, chatml, layout, on_bad_row="skip", max_bad_fraction=0.5).report
    assert (report.rows, report.kept, sum(report.dropped.values())) == (3, 4, 1)
    assert report.desirable.kept == report.undesirable.kept == 2


def test_unpaired_rows_are_refused_where_pairs_are_wanted(write_rows, chatml):
    path = write_rows([UNPAIRED, UNPAIRED | {"label": False}])
    with pytest.raises(RecordError, match=r"prompt, chosen, rejected") as error:
        load(path, chatml)
    assert str(error.value).startswith(f"{path}: the rows are unpaired")
    assert "\n" not in str(error.value)


def test_format_is_what_most_rows_are_and_is_said(write_rows, chatml):
    assert detect_format([{"prompt": 1}, {"chosen": 1}, PAIR]) == "paired"
    assert detect_format([PAIR, UNPAIRED, UNPAIRED]) == "unpaired"
    assert detect_format([PAIR | UNPAIRED]) == "paired"
    assert detect_format([{"prompt": 1}, {}]) is None
    report = load(write_rows([PAIR | {"label": True, "id": 1}]), chatml).report
    assert (report.format, report.layout, report.ignored_columns) == ("paired", "paired", ("id", "label"))
    assert json.loads(report.to_json())["format"] == "paired"


def test_the_format_of_the_first_rows_holds_for_the_file(write_rows, plain, monkeypatch):
    from rdro_jax.data import reading as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 2)
    rows = [PAIR | {"prompt": str(i)} for i in range(4)] + [UNPAIRED, PAIR]
    report = load(write_rows(rows), plain, on_bad_row="skip", max_bad_fraction=0.5).report
    assert (report.kept, report.dropped) == (10, {"chosen: missing": 1})


# Without a chat template every letter of these is one token: <s> + prompt + completion + </s>.
def test_a_pair_shares_a_window_and_keeps_one_prompt(write_rows, plain):
    row = {"prompt": "abcdefghij", "chosen": "0123456789", "rejected": "012"}
    cut = load(write_rows([row]), plain, max_length=32)  # 22 + 15 tokens: 5 too many, and chosen gives them
    assert texts(cut, plain) == ["<s>fghij0123456789</s>", "<s>fghij012</s>"]
    assert cut.truncated.tolist() == [True, True]
    assert cut.prompt_lengths.tolist() == [6, 6]
    assert texts(load(write_rows([row]), plain, max_length=37), plain)[0] == "<s>abcdefghij0123456789</s>"


def test_a_pair_too_long_for_two_prompts_shares_evenly(write_rows, plain):
    row = {"prompt": "abcdefghij", "chosen": "0123456789", "rejected": "9876543210"}
    cut = load(write_rows([row]), plain, max_length=16)  # 8 each: BOS, one letter, six digits
    assert texts(cut, plain) == ["<s>j012345", "<s>j987654"]
    assert cut.report.unterminated == 2


@pytest.mark.parametrize(("layout", "kept"), [("paired", 0), ("unpaired", 2)])
def test_halves_of_a_split_pair_have_a_window_each(layout, kept, write_rows, plain):
    rows = [{"prompt": "abcdef", "chosen": "0123", "rejected": "4567"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    report = load(write_rows(rows), plain, layout, max_length=20, truncation="drop").report
    assert report.kept == kept + 2
    assert report.rows == report.kept // 2 + sum(report.dropped.values())
    assert report.desirable.too_long == report.undesirable.too_long == (kept == 0)


VALUES = (
    st.none()
    | st.text(max_size=60)
    | st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text("ab<|", max_size=3)}),
        max_size=3,
    )
)
ROWS = st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected", "label", "alpha"]), VALUES)
TEXT_PAIRS = st.fixed_dictionaries(
    {name: st.text(min_size=1, max_size=60) for name in ("prompt", "chosen", "rejected")}
)


@given(
    st.lists(ROWS | TEXT_PAIRS, max_size=8),
    st.sampled_from(["keep_end", "drop", "error"]),
    st.sampled_from(["paired", "unpaired"]),
)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_traceback_no_torn_pair_and_no_silent_loss(write_rows, chatml, rows, truncation, layout):
    path = write_rows([PAIR] * 9 + rows)
    skip = {"on_bad_row": "skip", "max_bad_fraction": 1.0}
    examples = load(path, chatml, layout, max_length=140, truncation=truncation, **skip)
    report = examples.report
    assert report.rows == 9 + len(rows) == report.kept // 2 + sum(report.dropped.values())
    assert examples.desirable.tolist() == [True, False] * (report.kept // 2)
    assert (examples.lengths > examples.prompt_lengths).all()
    begins = examples.offsets[:-1]
    for i in range(0, report.kept, 2):
        one, other = (examples.tokens[begins[j] : begins[j] + examples.prompt_lengths[j]] for j in (i, i + 1))
        if layout == "paired":
            np.testing.assert_array_equal(one, other)
            assert examples.lengths[i : i + 2].sum() <= 140
        assert examples.hashes[i].tolist() != examples.hashes[i + 1].tolist()
