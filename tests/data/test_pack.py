"""Packing against brute force: every example once, nothing too long, batches rebuilt example by example."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdro_jax.data.pack import make_batch, pack_batch, pack_row, plan_rows


def test_best_fit_by_hand():
    # 6 opens row 0; 5 opens row 1; 4 fills row 0 exactly (tighter than row 1); 5 fills row 1.
    lengths = np.array([6, 5, 4, 5])
    assert plan_rows(range(4), lengths, max_length=10, slots=4, window=4) == [[0, 2], [1, 3]]
    # With one row open at a time row 0 is closed when row 1 opens, although the 4 would fit.
    assert plan_rows(range(4), lengths, max_length=10, slots=4, window=1) == [[0], [1, 2], [3]]
    assert plan_rows(range(4), lengths, max_length=10, slots=1, window=4) == [[0], [1], [2], [3]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 6), st.integers(1, 5), st.randoms())
@settings(deadline=None, max_examples=100)
def test_every_example_once_within_room_and_slots(lengths, slots, window, random):
    order = random.sample(range(len(lengths)), len(lengths))
    rows = plan_rows(order, np.array(lengths), max_length=50, slots=slots, window=window)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert 1 <= len(row) <= slots
        assert sum(lengths[index] for index in row) <= 50


def test_rows_are_full_on_lognormal_lengths():
    lengths = np.random.default_rng(0).lognormal(np.log(300) - 0.7**2 / 2, 0.7, 20_000).astype(int).clip(8, 2048)
    rows = plan_rows(range(20_000), lengths, max_length=2048, slots=32, window=32)
    assert lengths.sum() / (len(rows) * 2048) > 0.95


def test_packing_moves_examples_only_within_the_window():
    lengths = np.random.default_rng(1).integers(10, 200, 5_000)
    window = 16
    rows = plan_rows(range(5_000), lengths, max_length=1000, slots=64, window=window)
    firsts = [row[0] for row in rows]
    assert firsts == sorted(firsts)
    for number, row in enumerate(rows):
        closed_by = firsts[number + window] if number + window < len(rows) else len(lengths)
        assert max(row) < closed_by


def by_definition(examples, row, max_length, slots, reference):
    """A row token by token, from the documentation of Batch."""
    tokens, positions, segments, mask = [], [], [], []
    desirable, weight, logps = [False] * slots, [0.0] * slots, [0.0] * slots
    for slot, index in enumerate(row):
        own = examples.tokens[examples.offsets[index] : examples.offsets[index + 1]].tolist()
        prompt = examples.prompt_lengths[index]
        for position, token in enumerate(own):
            tokens.append(token)
            positions.append(position)
            segments.append(slot + 1)
            mask.append(position + 1 < len(own) and position + 1 >= prompt)
        desirable[slot] = bool(examples.desirable[index])
        weight[slot], logps[slot] = examples.weight[index], reference[index]
    padding = [0] * (max_length - len(tokens))
    return tokens + padding, positions + padding, segments + padding, mask + padding, desirable, weight, logps


def test_row_equals_its_definition(tiny_examples):
    examples = tiny_examples(lengths=[5, 9, 4, 2], prompts=[2, 3, 3, 1])
    reference = np.float32([-1.5, -2.5, -3.5, -4.5])
    row = [2, 0, 3]
    packed = pack_row(examples, row, max_length=16, slots=4, reference_logps=reference)
    assert packed[7:] == (None, None)
    for got, wanted in zip(packed[:7], by_definition(examples, row, 16, 4, reference), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [field.dtype for field in packed[:7]] == [np.int32] * 3 + [bool] * 2 + [np.float32] * 2


def test_each_completion_token_is_a_target_once(tiny_examples):
    examples = tiny_examples(lengths=[5, 9, 4, 2], prompts=[2, 3, 3, 1])
    packed = pack_row(examples, [0, 1], max_length=14, slots=2)
    targets = packed.tokens[1:][packed.loss_mask[:-1]]
    completions = [examples.tokens[2:5], examples.tokens[8:14]]
    np.testing.assert_array_equal(targets, np.concatenate(completions))
    assert not packed.loss_mask[-1]


def test_reference_is_nan_where_not_yet_known_and_zero_where_empty(tiny_examples):
    examples = tiny_examples(lengths=[5, 4], prompts=[2, 2])
    packed = pack_row(examples, [1, -1, -1], max_length=8, slots=3)
    assert np.isnan(packed.reference_logps[0])
    np.testing.assert_array_equal(packed.reference_logps[1:], 0)
    np.testing.assert_array_equal(packed.weight, [examples.weight[1], 0, 0])


def test_empty_row_is_padding(tiny_examples):
    examples = tiny_examples(lengths=[5, 4], prompts=[2, 2])
    batch = pack_batch(examples, np.array([[0, 1], [-1, -1]]), max_length=16)
    assert batch.tokens.shape == (2, 16)
    assert batch.weight.shape == (2, 2)
    for field in batch[:7]:
        assert not np.asarray(field[1]).any()


def test_row_that_is_too_short_cannot_be_packed_silently(tiny_examples):
    examples = tiny_examples(lengths=[5, 4], prompts=[2, 2])
    with pytest.raises(ValueError, match="broadcast"):
        pack_row(examples, [0, 1], max_length=8, slots=2)


def test_a_batch_of_token_ids_by_hand():
    prompts, completions = [[5, 6], [3], (9,)], [[7, 8], [4], np.array([1, 2, 3])]
    labels, logps = [True, False, True], [-7, -3, -9]
    batch = make_batch(prompts, completions, labels, slots=2, weight=[1, 2, 3], reference_logps=logps)
    wanted = {
        "tokens": [[5, 6, 7, 8, 3, 4], [9, 1, 2, 3, 0, 0]],
        "positions": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 0]],
        "segment_ids": [[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 0, 0]],
        "loss_mask": [[False, True, True, False, True, False], [True, True, True, False, False, False]],
        "desirable": [[True, False], [True, False]],
        "weight": [[1, 2], [3, 0]],
        "reference_logps": [[-7, -3], [-9, 0]],
    }
    for name, values in wanted.items():
        np.testing.assert_array_equal(getattr(batch, name), values, err_msg=name)
    assert np.isnan(make_batch(prompts, completions, [True, False, True]).reference_logps).all()


@pytest.mark.parametrize(
    ("prompts", "completions", "desirable", "message"),
    [
        ([[1]], [[2], [3]], [True], "1 prompts, 2 completions, 1 labels; wanted as many of each, at least one"),
        ([], [], [], "0 prompts, 0 completions, 0 labels; wanted as many of each, at least one"),
        ([[1], []], [[2], [3]], [True, False], "prompt 1 has no token"),
        ([[1], [4]], [[2], []], [True, False], "completion 1 has no token"),
    ],
)
def test_token_ids_that_are_no_batch(prompts, completions, desirable, message):
    with pytest.raises(ValueError, match=message):
        make_batch(prompts, completions, desirable)
