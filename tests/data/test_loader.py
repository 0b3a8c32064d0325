"""The order: pure, complete, stratified, the same for any number of hosts, seekable; batches equal packing by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdro_jax.data import epoch_order, make_loader
from rdro_jax.errors import ConfigError, RecordError

LAYOUT = {"global_batch_size": 4, "max_length": 64, "slots": 8, "seed": 3}


@pytest.fixture
def examples(tiny_examples):
    random = np.random.default_rng(7)
    lengths = random.integers(4, 30, 300)
    return tiny_examples(lengths, prompts=[2] * 300, desirable=random.random(300) < 0.39)


def flat(loader):
    return [(indices, *batch) for batch, indices in loader]


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_every_window_holds_the_rate_within_one(labels, seed, epoch):
    labels = np.array(labels, bool)
    order = epoch_order(labels, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(len(labels)))
    dealt = labels[order]
    for size in range(1, len(labels) + 1):
        counts = np.convolve(dealt, np.ones(size, int), "valid")
        assert (np.abs(counts - size * labels.mean()) < 1).all()


@pytest.mark.parametrize("batching", ["stratified", "natural"])
def test_order_depends_on_seed_and_epoch_alone(batching):
    labels = np.random.default_rng(0).random(100) < 0.3
    orders = {
        (seed, epoch): tuple(epoch_order(labels, seed=seed, epoch=epoch, batching=batching))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    for (seed, epoch), order in orders.items():
        assert tuple(epoch_order(labels, seed=seed, epoch=epoch, batching=batching)) == order
        assert sorted(order) == list(range(100))


def test_classes_are_each_shuffled():
    labels = np.arange(100) % 4 == 0
    order = epoch_order(labels, seed=0, epoch=0)
    for label in (True, False):
        own = order[labels[order] == label]
        assert (np.diff(own) < 0).any()


def test_each_epoch_has_every_example_once(examples):
    loader = make_loader(examples, num_epochs=3, **LAYOUT)
    steps = flat(loader)
    assert len(steps) == loader.num_batches
    for epoch, (begin, end) in enumerate(zip((0, *loader.ends), loader.ends, strict=False)):
        indices = np.concatenate([step[0].ravel() for step in steps[begin:end]])
        assert sorted(indices[indices >= 0]) == list(range(300)), epoch


def test_batches_hold_what_their_indices_say(examples):
    reference = np.arange(300, dtype=np.float32) - 500
    for batch, indices in make_loader(examples, reference_logps=reference, **LAYOUT):
        occupied = indices >= 0
        np.testing.assert_array_equal(batch.weight > 0, occupied)
        np.testing.assert_array_equal(batch.reference_logps[occupied], reference[indices[occupied]])
        np.testing.assert_array_equal(batch.desirable[occupied], examples.desirable[indices[occupied]])
        assert batch.tokens.shape == (4, 64)
        for row, slot in zip(*np.nonzero(occupied), strict=True):
            index = indices[row, slot]
            own = examples.tokens[examples.offsets[index] : examples.offsets[index + 1]]
            np.testing.assert_array_equal(batch.tokens[row][batch.segment_ids[row] == slot + 1], own)


def test_stratified_batches_hold_both_classes(tiny_examples):
    random = np.random.default_rng(1)
    desirable = random.random(2000) < 0.15
    # Long completions are mostly the preferred ones, as raters' are: packing must not undo the balance.
    lengths = np.where(desirable, random.integers(20, 60, 2000), random.integers(5, 40, 2000))
    examples = tiny_examples(lengths, prompts=[2] * 2000, desirable=desirable)
    rates = {}
    for batching in ("stratified", "natural"):
        loader = make_loader(examples, global_batch_size=8, max_length=64, slots=8, num_epochs=2, batching=batching)
        full = [batch for batch, indices in loader if (indices >= 0).any(axis=1).all()]
        rates[batching] = [batch.desirable[batch.weight > 0].mean() for batch in full]
    assert 0 < min(rates["stratified"]) <= max(rates["stratified"]) < 1
    assert np.std(rates["stratified"]) < np.std(rates["natural"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_sees_the_same_global_batches(examples, hosts):
    alone = flat(make_loader(examples, num_epochs=2, **LAYOUT))
    shares = [flat(make_loader(examples, num_epochs=2, host_index=i, host_count=hosts, **LAYOUT)) for i in range(hosts)]
    glued = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(alone, glued)


@pytest.mark.parametrize("start", [0, 1, 5, 29])
def test_resumes_at_any_step(examples, start):
    whole = make_loader(examples, num_epochs=3, **LAYOUT)
    resumed = make_loader(examples, num_epochs=3, start_step=start, **LAYOUT)
    assert resumed.num_batches == whole.num_batches
    assert_same(flat(whole)[start:], flat(resumed))


def test_iterating_twice_and_indexing_give_the_same_batches(examples):
    loader = make_loader(examples, num_epochs=2, **LAYOUT)
    assert_same(flat(loader), flat(loader))
    assert_same(
        flat(loader), [(indices, *batch) for batch, indices in map(loader.__getitem__, range(loader.num_batches))]
    )


def test_finished_loader_yields_nothing(examples):
    done = make_loader(examples, **LAYOUT).num_batches
    assert flat(make_loader(examples, start_step=done, **LAYOUT)) == []


def test_sequential_visits_examples_in_order(tiny_examples):
    examples = tiny_examples([30] * 10, prompts=[2] * 10)
    loader = make_loader(examples, batching="sequential", **LAYOUT)
    indices = np.concatenate([step[0].ravel() for step in flat(loader)])
    assert indices[indices >= 0].tolist() == list(range(10))


def test_epoch_counts_fractions(examples):
    loader = make_loader(examples, num_epochs=2, **LAYOUT)
    first = loader.ends[0]
    assert loader.epoch(0) == 0
    assert loader.epoch(first) == 1
    assert loader.epoch(first // 2) == (first // 2) / first
    assert loader.epoch(loader.num_batches) == 2


def test_rows_must_divide_among_hosts_and_examples_fit(examples):
    with pytest.raises(ConfigError, match="global_batch_size"):
        make_loader(examples, host_count=3, **LAYOUT)
    with pytest.raises(RecordError, match="packed row"):
        make_loader(examples, **LAYOUT | {"max_length": 16})
