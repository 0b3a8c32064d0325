"""What is cut, counted letter by letter: without a chat template every letter is one token."""

import numpy as np
import pytest

from rdro_jax.data import DataConfig, load_examples
from rdro_jax.errors import RecordError

ROW = {"prompt": "abcdefghij", "completion": "0123456789", "label": True}  # <s> + 10 + 10 + </s> = 22 tokens
BAD = {"prompt": "a", "completion": "1", "label": False}


@pytest.fixture
def cut(write_rows, plain):
    """Text of the first example, its prompt's length, and the report."""

    def of(**settings):
        examples = load_examples(write_rows([ROW, BAD]), plain, DataConfig(train="-", **settings))
        text = plain.decode(examples.tokens[: examples.lengths[0]])
        return text, int(examples.prompt_lengths[0]), examples.report

    return of


@pytest.mark.parametrize(
    ("settings", "text", "prompt_length"),
    [
        ({"max_length": 22}, "<s>abcdefghij0123456789</s>", 11),
        ({"max_length": 18}, "<s>efghij0123456789</s>", 7),
        ({"max_length": 18, "truncation": "keep_start"}, "<s>abcdef0123456789</s>", 7),
        ({"max_length": 10}, "<s>j01234567", 2),
        ({"max_length": 10, "truncation": "keep_start"}, "<s>a01234567", 2),
        ({"max_prompt_length": 4}, "<s>hij0123456789</s>", 4),
        ({"max_prompt_length": 4, "truncation": "keep_start"}, "<s>abc0123456789</s>", 4),
        ({"max_completion_length": 3}, "<s>abcdefghij012", 11),
        ({"max_completion_length": 11}, "<s>abcdefghij0123456789</s>", 11),
        ({"max_prompt_length": 3, "max_completion_length": 4}, "<s>ij0123", 3),
        ({"max_length": 12, "max_completion_length": 4}, "<s>defghij0123", 8),
        ({"max_length": 12, "max_prompt_length": 4}, "<s>j0123456789", 2),
    ],
)
def test_cut_by_hand(settings, text, prompt_length, cut):
    got, length, report = cut(**settings)
    whole = text == "<s>abcdefghij0123456789</s>"
    assert (got, length) == (text, prompt_length)
    assert report.desirable.truncated == (not whole)
    assert report.undesirable.truncated == 0
    assert report.unterminated == (not text.endswith("</s>"))


@pytest.mark.parametrize(
    ("settings", "reason", "got"),
    [
        ({"max_length": 21}, "longer than max_length", "22 tokens for a window of 21"),
        ({"max_prompt_length": 10}, "prompt longer than max_prompt_length", "11 tokens for 10"),
        ({"max_completion_length": 10}, "completion longer than max_completion_length", "11 tokens for 10"),
    ],
)
def test_drop_counts_by_class_and_error_names_the_row(settings, reason, got, write_rows, plain):
    path = write_rows([ROW, ROW | {"prompt": "a", "completion": "b"}, BAD])
    report = load_examples(path, plain, DataConfig(train="-", truncation="drop", max_bad_fraction=0, **settings)).report
    assert report.dropped == {f"row: {reason}": 1}
    assert (report.desirable.too_long, report.undesirable.too_long, report.kept) == (1, 0, 2)
    with pytest.raises(RecordError) as error:
        load_examples(path, plain, DataConfig(train="-", truncation="error", **settings))
    assert str(error.value).startswith(f"{path}:1: row: {reason}, got {got}")


@pytest.mark.parametrize("truncation", ["keep_start", "keep_end"])
def test_the_assistants_header_is_never_cut(truncation, write_rows, chatml):
    path = write_rows([ROW | {"prompt": "x" * 200}, BAD])
    examples = load_examples(path, chatml, DataConfig(train="-", max_length=100, truncation=truncation))
    first = examples.tokens[: examples.lengths[0]]
    prompt = chatml.decode(first[: examples.prompt_lengths[0]])
    assert prompt.endswith("<|im_start|>assistant\n")
    assert chatml.decode(first[examples.prompt_lengths[0] :]) == "0123456789<|im_end|>"
    whole = chatml.apply_chat_template([{"role": "user", "content": "x" * 200}], tokenize=False)
    kept = prompt.removesuffix("<|im_start|>assistant\n")
    assert whole.startswith(kept) if truncation == "keep_start" else whole.endswith(kept.removeprefix(chatml.bos_token))


def test_a_limit_below_the_header_is_said(write_rows, chatml):
    with pytest.raises(RecordError, match="max_prompt_length leaves no room"):
        load_examples(write_rows([ROW, BAD]), chatml, DataConfig(train="-", max_prompt_length=5))


def test_halves_of_a_pair_keep_one_prompt_under_every_limit(write_rows, plain):
    pair = {"prompt": "abcdefghij", "chosen": "0123456789", "rejected": "987"}
    config = DataConfig(train="-", max_prompt_length=5, max_completion_length=6, truncation="keep_start")
    examples = load_examples(write_rows([pair]), plain, config, layout="paired")
    texts = [plain.decode(part) for part in np.split(examples.tokens, examples.offsets[1:-1])]
    assert texts == ["<s>abcd012345", "<s>abcd987</s>"]
