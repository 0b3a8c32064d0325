"""The order: pure, complete, stratified, the same for any number of hosts, seekable; batches equal packing by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdro_jax.data import epoch_order, make_loader
from rdro_jax.data.loader import balancing_weights, split_pair_order
from rdro_jax.errors import ConfigError, RecordError

LAYOUT = {"global_batch_size": 4, "max_length": 64, "slots": 8, "seed": 3}


@pytest.fixture
def examples(tiny_examples):
    random = np.random.default_rng(7)
    lengths = random.integers(4, 30, 300)
    return tiny_examples(lengths, prompts=[2] * 300, desirable=random.random(300) < 0.39)


def flat(loader):
    """Every array of every step: indices first, then the batch's, those of mismatched rows last."""
    return [arrays(*step) for step in loader]


def arrays(batch, indices):
    own = [field for field in batch if isinstance(field, np.ndarray)]
    return (indices, *own, *(arrays(batch.mismatched, indices)[1:] if batch.mismatched else ()))


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


@pytest.mark.parametrize("batching", ["stratified", "natural", "balanced"])
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
        assert set(order) == set(range(100))
        assert len(order) == (2 * (~labels).sum() if batching == "balanced" else 100)


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


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_sees_the_same_global_batches(examples, hosts):
    layout = LAYOUT | {"global_batch_size": 8}
    alone = make_loader(examples, num_epochs=2, **layout)
    shares = [make_loader(examples, num_epochs=2, host_index=i, host_count=hosts, **layout) for i in range(hosts)]
    glued = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*map(flat, shares), strict=True)]
    assert_same(flat(alone), glued)
    for share in shares:  # what a bad step names is in any host's part
        np.testing.assert_array_equal(share.members(3), alone.members(3))


@pytest.mark.parametrize("start", [0, 1, 5, 29])
def test_resumes_at_any_step(examples, start):
    whole = make_loader(examples, num_epochs=3, **LAYOUT)
    resumed = make_loader(examples, num_epochs=3, start_step=start, **LAYOUT)
    assert resumed.num_batches == whole.num_batches
    assert_same(flat(whole)[start:], flat(resumed))


def test_iterating_twice_and_indexing_give_the_same_batches(examples):
    loader = make_loader(examples, num_epochs=2, **LAYOUT)
    assert_same(flat(loader), flat(loader))
    assert_same(flat(loader), [arrays(*loader[step]) for step in range(loader.num_batches)])


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


def as_pairs(examples, **how):
    """The examples as pairs: 2i chosen, 2i + 1 rejected."""
    desirable = np.arange(len(examples.lengths)) % 2 == 0
    return examples._replace(desirable=desirable, **how)


@pytest.mark.parametrize("batching", ["stratified", "natural", "balanced", "sequential"])
def test_pairs_stand_in_adjacent_slots_of_one_row_once_per_epoch(examples, batching):
    loader = make_loader(as_pairs(examples, paired=True), batching=batching, num_epochs=2, **LAYOUT | {"slots": 5})
    orders = []
    for begin, end in zip((0, *loader.ends), loader.ends, strict=False):
        plans = np.concatenate([loader[step][1] for step in range(begin, end)])
        even, odd = plans[:, 0:4:2], plans[:, 1:4:2]
        assert (plans[:, 4] == -1).all()
        np.testing.assert_array_equal(np.where(even < 0, -1, even + 1), odd)
        orders.append(tuple(even[even >= 0]))
        assert sorted(orders[-1]) == list(range(0, 300, 2))
    assert (len(set(orders)) == 1) == (batching == "sequential")
    for batch, indices in loader:
        np.testing.assert_array_equal(batch.desirable, (indices >= 0) & (indices % 2 == 0))


def test_pairs_need_two_slots_and_a_row_for_both(tiny_examples):
    pairs = as_pairs(tiny_examples([20, 20], prompts=[2, 2]), paired=True)
    with pytest.raises(ConfigError, match="two slots"):
        make_loader(pairs, **LAYOUT | {"slots": 1})
    with pytest.raises(RecordError, match="a pair has 40 tokens"):
        make_loader(pairs, **LAYOUT | {"max_length": 39})
    assert make_loader(pairs, **LAYOUT | {"max_length": 40}).num_batches == 1


@given(st.integers(0, 30), st.integers(0, 5), st.sampled_from(["stratified", "natural"]))
@settings(deadline=None)
def test_halves_of_split_pairs_are_half_an_epoch_apart(pairs, seed, batching):
    order = split_pair_order(pairs, seed=seed, epoch=0, batching=batching)
    assert sorted(order) == list(range(2 * pairs))
    place = np.argsort(order).reshape(-1, 2)
    assert (np.abs(place[:, 0] - place[:, 1]) >= pairs - 2).all()
    if batching == "stratified":
        assert (order % 2 == np.arange(2 * pairs) % 2).all()


@pytest.mark.parametrize("batching", ["stratified", "natural", "sequential"])
@pytest.mark.parametrize("count", [2, 4, 6, 300])
def test_halves_of_split_pairs_never_share_a_row(tiny_examples, count, batching):
    split = as_pairs(tiny_examples([5] * count, prompts=[2] * count), split_pairs=True)
    loader = make_loader(split, batching=batching, num_epochs=3, **LAYOUT)
    for begin, end in zip((0, *loader.ends), loader.ends, strict=False):
        rows = np.concatenate([loader[step][1] for step in range(begin, end)])
        assert sorted(rows[rows >= 0]) == list(range(count))
        for row in rows:
            own = row[row >= 0]
            assert len(set(own // 2)) == len(own)


def test_split_pairs_differ_from_epoch_to_epoch_and_keep_the_rate():
    orders = [tuple(split_pair_order(50, seed=0, epoch=epoch)) for epoch in range(4)]
    assert len(set(orders)) == 4
    neighbours = [{(a // 2, b // 2) for a, b in zip(order[::2], order[1::2], strict=True)} for order in orders]
    assert len(neighbours[0] & neighbours[1]) < 10


def test_rate_of_the_prompt_stands_in_the_batch_only_when_asked(examples):
    rates = np.linspace(0.1, 0.9, 300, dtype=np.float32)
    for batch, indices in make_loader(examples, prompt_alpha=rates, **LAYOUT):
        np.testing.assert_array_equal(batch.prompt_alpha, np.where(indices >= 0, rates[indices], np.float32(0.5)))
    assert make_loader(examples, **LAYOUT)[0][0].prompt_alpha is None


def test_balanced_batches_are_half_and_half_and_weigh_as_the_data_do(tiny_examples):
    """Oracle: with three times as many of one class, each of the other comes three times, and any mean stays itself."""
    random = np.random.default_rng(1)
    desirable = np.arange(120) % 4 == 0
    examples = tiny_examples(random.integers(4, 30, 120), prompts=[2] * 120, desirable=desirable)
    loader = make_loader(examples, batching="balanced", **LAYOUT)
    values, seen, batches = random.random(120), np.zeros(120), list(loader)
    order = epoch_order(desirable, seed=3, epoch=0, batching="balanced")
    assert (desirable[order] == (np.arange(180) % 2 == 0)).all()
    for batch, members in batches[:-1]:  # packing moves examples by some rows, hence not exactly half
        assert 0.2 < batch.desirable[members >= 0].mean() < 0.8
    for batch, members in batches:
        np.add.at(seen, members[members >= 0], batch.weight[members >= 0])
    assert np.bincount(np.concatenate([m[m >= 0] for _, m in batches])).tolist() == [3, 1, 1, 1] * 30
    np.testing.assert_allclose(seen / seen.sum(), examples.weight / examples.weight.sum(), rtol=1e-5)
    np.testing.assert_allclose((seen * values).sum() / seen.sum(), np.average(values, weights=examples.weight), 1e-5)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_is_balanced_with_nothing(label, tiny_examples):
    examples = tiny_examples([4] * 5, prompts=[2] * 5, desirable=[label] * 5)
    order = epoch_order(examples.desirable, seed=0, epoch=0, batching="balanced")
    assert sorted(order) == list(range(5))
    assert balancing_weights(examples).tolist() == examples.weight.tolist()
