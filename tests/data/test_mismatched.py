"""Mismatched rows, read back token by token: whose prompt, whose completion, in which batch, and what was left out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdro_jax.data import make_loader
from rdro_jax.data.examples import example_hash
from rdro_jax.data.mismatched import next_different

LAYOUT = {"global_batch_size": 4, "max_length": 64, "slots": 8, "seed": 3, "mismatched": True}


@pytest.fixture
def examples(tiny_examples):
    """300 examples of distinct tokens, so that each token tells where it came from; some completions are made equal."""
    random = np.random.default_rng(7)
    lengths = random.integers(4, 30, 300)
    made = tiny_examples(lengths, prompts=[2] * 300, desirable=random.random(300) < 0.39)
    for one in range(0, 300, 3):  # a third of the examples answer with the same two tokens
        made.tokens[made.offsets[one] + 2 : made.offsets[one + 1]] = 9
    return made


def segments(batch):
    """(prompt tokens, completion tokens, weight, reference) of every occupied slot of a batch, by the masks alone."""
    for row, slot in zip(*np.nonzero(batch.weight), strict=True):
        here = np.flatnonzero(batch.segment_ids[row] == slot + 1)
        scored = batch.loss_mask[row][here]
        assert not scored[-1]
        tokens, prompt = batch.tokens[row][here], len(here) - int(scored.sum())
        np.testing.assert_array_equal(batch.positions[row][here], np.arange(len(here)))
        assert scored.tolist() == [False] * (prompt - 1) + [True] * (len(here) - prompt) + [False]
        yield (
            tokens[:prompt].tolist(),
            tokens[prompt:].tolist(),
            batch.weight[row, slot],
            batch.reference_logps[row, slot],
        )


def test_every_prompt_meets_another_completion_of_its_batch(examples):
    loader = make_loader(examples, num_epochs=2, **LAYOUT)
    made = 0
    for batch, _ in loader:
        assert all(a.shape == b.shape for a, b in zip(batch[:7], batch.mismatched[:7], strict=True))
        own = {tuple(prompt): (completion, weight) for prompt, completion, weight, _ in segments(batch)}
        completions = Counter(tuple(completion) for completion, _ in own.values())
        prompts, used = Counter(), Counter()
        for prompt, completion, weight, _ in segments(batch.mismatched):
            assert completion != own[tuple(prompt)][0]
            assert weight == own[tuple(prompt)][1]
            prompts[tuple(prompt)] += 1
            used[tuple(completion)] += 1
        assert set(used) <= set(completions)
        assert max(prompts.values()) == 1
        assert batch.mismatched.mismatched is None
        made += prompts.total()
    # Packing once more is all but as tight as the first time: nearly every example has its counterpart.
    assert loader.mismatched.unmatched == 0
    assert made == 600 - loader.mismatched.surplus
    assert loader.mismatched.surplus < 30
    assert len(loader.mismatched_examples().lengths) == made


def test_examples_of_all_epochs_carry_their_log_probs_into_the_batches(examples):
    loader = make_loader(examples, num_epochs=2, **LAYOUT)
    made = loader.mismatched_examples()
    assert np.isnan(loader[0][0].mismatched.reference_logps[loader[0][0].mismatched.weight > 0]).all()
    logps = -np.arange(1, len(made.lengths) + 1, dtype=np.float32)
    number_of = {}
    for i, (a, b) in enumerate(zip(made.offsets, made.offsets[1:], strict=False)):
        tokens, prompt = made.tokens[a:b], int(made.prompt_lengths[i])
        assert made.hashes[i].tolist() == list(example_hash(tokens, prompt))
        number_of.setdefault((tuple(tokens[:prompt]), tuple(tokens[prompt:])), set()).add(logps[i])
    filled = loader.with_mismatched_logps(logps)
    for step in range(0, filled.num_batches, 5):
        for prompt, completion, _, reference in segments(filled[step][0].mismatched):
            assert reference in number_of[tuple(prompt), tuple(completion)]


def test_pairing_depends_on_seed_epoch_and_step_alone(examples):
    def rows(**settings):
        loader = make_loader(examples, num_epochs=2, **LAYOUT | settings)
        return [loader[step][0].mismatched.tokens for step in range(loader.num_batches)]

    whole, hosts = rows(), [rows(host_index=i, host_count=2) for i in range(2)]
    for step, tokens in enumerate(whole):
        np.testing.assert_array_equal(tokens, np.concatenate([host[step] for host in hosts]))
    np.testing.assert_array_equal(whole, rows(start_step=5))
    assert not np.array_equal(whole[0], rows(seed=4)[0])


def test_hosts_score_the_same_examples(examples):
    made = [make_loader(examples, host_index=i, host_count=2, **LAYOUT).mismatched_examples() for i in range(2)]
    np.testing.assert_array_equal(made[0].hashes, made[1].hashes)


def test_a_long_prompt_loses_its_beginning_and_no_completion_is_cut(tiny_examples):
    examples = tiny_examples([20, 18], prompts=[18, 2])  # 18 + 16 and 2 + 2 tokens for rows of 20
    loader = make_loader(examples, **LAYOUT | {"global_batch_size": 2, "max_length": 20})
    batch = loader[0][0].mismatched
    both = sorted((prompt, completion) for prompt, completion, _, _ in segments(batch))
    tokens = examples.tokens.tolist()
    assert both == sorted([(tokens[14:18], tokens[22:38]), (tokens[20:22], tokens[18:20])])
    assert sorted(loader.mismatched_examples().truncated) == [False, True]


@pytest.mark.parametrize(("completions", "unmatched"), [([5], 1), ([5, 5, 5], 3), ([5, 5, 6], 0)])
def test_equal_completions_find_no_counterpart_in_each_other(tiny_examples, completions, unmatched):
    count = len(completions)
    examples = tiny_examples([3] * count, prompts=[2] * count)
    examples.tokens[2::3] = completions
    loader = make_loader(examples, **LAYOUT | {"max_length": 8})
    found = list(segments(loader[0][0].mismatched))
    assert loader.mismatched.unmatched == unmatched
    assert len(found) == count - unmatched


def test_what_does_not_fit_is_left_out_evenly(tiny_examples):
    """Rows filled to the last token by (long, short) pairs cannot be filled so again once the halves are mixed."""
    lengths = np.tile([40, 20, 37, 23], 60)
    examples = tiny_examples(lengths, prompts=np.tile([1, 1, 18, 4], 60))
    loader = make_loader(examples, **LAYOUT | {"max_length": 60, "global_batch_size": 8, "num_epochs": 20})
    lost = loader.mismatched.surplus
    assert 0 < lost < 0.2 * 240 * 20
    made = loader.mismatched_examples()
    assert len(made.lengths) == 240 * 20 - lost
    # By chance alone: the kept completions are as long as all are, within five standard errors.
    completions, all_of_them = made.lengths - made.prompt_lengths, examples.lengths - examples.prompt_lengths
    error = all_of_them.std() * np.sqrt(lost) / len(completions)
    assert abs(completions.mean() - all_of_them.mean()) < 5 * error


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_next_different_by_search(values):
    ring = np.array(values)
    for place, got in enumerate(next_different(ring)):
        steps = (k % len(values) for k in range(place + 1, place + len(values)))
        assert got == next((k for k in steps if values[k] != values[place]), -1)
