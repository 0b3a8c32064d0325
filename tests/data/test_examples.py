"""Arrays, hashes and the report of a small file, counted by hand."""

import json

import numpy as np
import xxhash

from rdro_jax.data import DataConfig, load_examples
from rdro_jax.data.examples import example_hash

ROWS = [
    {"prompt": "ab", "completion": "xyz", "label": True, "weight": 0.5},
    {"prompt": "a", "completion": "x", "label": False},
    {"prompt": "abcd", "completion": "xy", "label": True},
]


def test_arrays_counted_by_hand(write_rows, plain):
    path = write_rows(ROWS)
    examples = load_examples(path, plain, DataConfig(train=path, max_length=32))
    texts = ["<s>abxyz</s>", "<s>ax</s>", "<s>abcdxy</s>"]
    np.testing.assert_array_equal(examples.lengths, [7, 4, 8])
    np.testing.assert_array_equal(examples.offsets, [0, 7, 11, 19])
    np.testing.assert_array_equal(examples.prompt_lengths, [3, 2, 5])
    np.testing.assert_array_equal(examples.desirable, [True, False, True])
    np.testing.assert_array_equal(examples.weight, np.float32([0.5, 1, 1]))
    for text, begin, end in zip(texts, examples.offsets, examples.offsets[1:], strict=False):
        assert plain.decode(examples.tokens[begin:end]) == text
    assert [array.dtype for array in examples[:6]] == [np.int32, np.int64, np.int32, bool, np.float32, np.uint64]


def test_report_counted_by_hand(write_rows, plain):
    path = write_rows(ROWS)
    report = load_examples(path, plain, DataConfig(train=path, max_length=7)).report
    assert (report.rows, report.kept, report.dropped, report.alpha) == (3, 3, {}, 1.5 / 2.5)
    assert (report.tokens, report.unterminated) == (7 + 4 + 7, 0)
    desirable, undesirable = report.desirable, report.undesirable
    assert (desirable.kept, desirable.truncated, undesirable.kept, undesirable.truncated) == (2, 1, 1, 0)
    assert (desirable.prompt_tokens, desirable.completion_tokens) == (3 + 4, 4 + 3)
    assert (desirable.mean_prompt_length, undesirable.mean_completion_length) == (3.5, 2.0)
    assert json.loads(report.to_json())["desirable"]["kept"] == 2


def test_hash_is_of_tokens_and_prompt_length():
    tokens = np.array([1, 2, 3], np.int32)
    high, low = example_hash(tokens, 2)
    digest = xxhash.xxh3_128_hexdigest(b"\1\0\0\0\2\0\0\0\3\0\0\0\2\0\0\0")
    assert f"{high:016x}{low:016x}" == digest
    others = [example_hash(tokens, 1), example_hash(tokens[:2], 3), example_hash(tokens[::-1], 2)]
    assert len({(high, low), *others}) == 4


def test_many_rows_cross_the_chunks_in_order(write_rows, plain, monkeypatch):
    from rdro_jax.data import reading as module

    rows = [{"prompt": "p", "completion": str(i), "label": i % 3 == 0} for i in range(20)]
    rows[7]["label"] = "bad"
    path = write_rows(rows)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 6)
    config = DataConfig(train=path, on_bad_row="skip")
    examples = load_examples(path, plain, config)
    words = [plain.decode(examples.tokens[a:b]) for a, b in zip(examples.offsets, examples.offsets[1:], strict=False)]
    assert words == [f"<s>p{i}</s>" for i in range(20) if i != 7]
    assert examples.desirable.tolist() == [i % 3 == 0 for i in range(20) if i != 7]
