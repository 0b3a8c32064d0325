"""Every loss through the train step, with a model so small that its numbers can be had by hand: a word, a number."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, make_batch

from rdro_jax.batch import Batch
from rdro_jax.losses import BCO, DPO, KTO, RDRO, Loss
from rdro_jax.parallel import MeshConfig, make_mesh, replicated, rows_sharding
from rdro_jax.train.state import init_state
from rdro_jax.train.step import make_train_step

LOSSES = [
    *(member().resolve(0.4) for member in get_args(Loss)),
    RDRO(alpha=0.4, estimator="class_mean"),
    RDRO(alpha=0.4, prompt_alpha="offset"),
    DPO(kind="ipo", sft_weight=0.3),
]
OPTIMIZER = optax.sgd(0.01)
WORDS = {"words": jnp.asarray(np.random.default_rng(3).normal(-3, 0.3, CONFIG.vocab_size), jnp.float32)}
named = pytest.mark.parametrize("loss", LOSSES, ids=str)


def forward(params, batch):
    """Completion log-prob: the sum of its words' numbers."""
    targets = jnp.roll(batch.tokens, -1, axis=1)
    scores = jnp.where(batch.loss_mask, params["words"][targets], 0.0)
    slots = jax.nn.one_hot(batch.segment_ids - 1, batch.weight.shape[1])
    return jnp.einsum("rt,rts->rs", scores, slots)


def batch(seed=0, rows=8) -> Batch:
    """Pairs of 4 examples a row, of every length, filler at the end; with all that any loss may read."""
    rng = np.random.default_rng(seed)
    lengths = [(int(p), int(c)) for p, c in rng.integers(1, 5, (4 * rows - 2, 2))]
    labels = [n % 2 == 0 for n in range(len(lengths))]
    others = make_batch(lengths[::-1], rows=rows, seed=seed + 1)
    made = make_batch(lengths, rows=rows, seed=seed, labels=labels)
    spread = lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    alpha = jnp.asarray(rng.uniform(0.1, 0.9, made.weight.shape), jnp.float32)
    near = lambda b: b._replace(reference_logps=jnp.where(b.weight > 0, spread(forward(WORDS, b)), 0.0))  # noqa: E731
    return near(made)._replace(prompt_alpha=alpha, mismatched=near(others))


def unpaired(made: Batch) -> Batch:
    """Classes so unevenly spread over the rows that micro-batches lack one."""
    return made._replace(desirable=jnp.broadcast_to(jnp.arange(8)[:, None] < 3, made.desirable.shape))


def batch_for(loss, seed=0):
    return batch(seed) if loss.paired else unpaired(batch(seed))


def steps(loss, batches, num_microbatches=1):
    step = jax.jit(make_train_step(forward, loss, OPTIMIZER, num_microbatches=num_microbatches))
    state, told = init_state(WORDS, loss, OPTIMIZER), []
    for each in batches:
        state, metrics = step(state, each)
        told.append(metrics)
    return state, told


def log_ratios(made):
    """Of the examples that are there, by hand, in float64."""
    s = np.asarray(forward(WORDS, made), np.float64) - np.asarray(made.reference_logps, np.float64)
    return s[np.asarray(made.weight) > 0]


@named
@pytest.mark.parametrize("num_microbatches", [2, 8])
def test_microbatches_change_nothing(loss, num_microbatches):
    batches = [batch_for(loss, seed) for seed in (0, 5)]
    whole_state, whole = steps(loss, batches)
    parts_state, parts = steps(loss, batches, num_microbatches)
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a["loss"] / a["weight"], b["loss"] / b["weight"], rtol=1e-6)
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=key)
    moved = np.abs(np.asarray(whole_state.params["words"] - WORDS["words"])).max()
    assert moved > 1e-5
    np.testing.assert_allclose(parts_state.params["words"], whole_state.params["words"], atol=1e-6, rtol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), parts_state.running, whole_state.running)


@named
def test_eight_devices_equal_one(loss):
    made = batch_for(loss)
    one_state, [one] = steps(loss, [made])
    mesh = make_mesh(MeshConfig(8, 1, 1))
    step = jax.jit(make_train_step(forward, loss, OPTIMIZER), out_shardings=replicated(mesh))
    state = jax.device_put(init_state(WORDS, loss, OPTIMIZER), replicated(mesh))
    many_state, many = step(state, jax.device_put(made, rows_sharding(mesh)))
    np.testing.assert_allclose(many["loss"] / many["weight"], one["loss"] / one["weight"], rtol=1e-6)
    np.testing.assert_allclose(many_state.params["words"], one_state.params["words"], atol=1e-6, rtol=0)


def test_the_kl_of_kto_is_that_of_the_global_batch():
    made = unpaired(batch(1))
    wanted = log_ratios(made.mismatched).mean()
    assert wanted > 0.1  # below 0 it would not move the baseline
    for parts in (1, 4):
        _, [told] = steps(KTO(), [made], parts)
        np.testing.assert_allclose(told["kl"], wanted, rtol=1e-5)
    s, baseline = log_ratios(made), max(0.0, wanted)
    liked = np.asarray(made.desirable)[np.asarray(made.weight) > 0]
    values = 1 / (1 + np.exp(np.where(liked, 1, -1) * 0.1 * (s - baseline)))
    np.testing.assert_allclose(told["loss"] / told["weight"], values.mean(), rtol=1e-5)


def test_the_kl_of_kto_by_microbatch():
    made = unpaired(batch(1))
    # part i of k holds every k-th row from row i on
    parts = [jax.tree.map(lambda x, i=i: x[i::4], made.mismatched) for i in range(4)]
    wanted = [log_ratios(part).mean() for part in parts]
    _, [told] = steps(KTO(kl_scope="microbatch"), [made], 4)
    np.testing.assert_allclose(told["kl"], np.mean(wanted), rtol=1e-5)
    values = []
    for i, kl in enumerate(wanted):
        part = jax.tree.map(lambda x, i=i: x[i::4], made)
        liked = np.asarray(part.desirable)[np.asarray(part.weight) > 0]
        values += list(1 / (1 + np.exp(np.where(liked, 1, -1) * 0.1 * (log_ratios(part) - max(0.0, kl)))))
    np.testing.assert_allclose(told["loss"] / told["weight"], np.mean(values), rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_shift_of_bco_runs_over_all_examples_seen(parts):
    made = [unpaired(batch(seed)) for seed in (0, 5)]
    loss, frozen = BCO(beta=0.5), optax.sgd(0.0)
    step = jax.jit(make_train_step(forward, loss, frozen, num_microbatches=parts))
    state = init_state(WORDS, loss, frozen)
    seen = []
    for each in made:
        state, told = step(state, each)
        seen += list(0.5 * log_ratios(each))
        np.testing.assert_allclose(told["delta"], np.mean(seen), rtol=1e-5)
    np.testing.assert_allclose(state.running["delta"], np.mean(seen), rtol=1e-5)
    assert state.running["examples"] == len(seen)


def test_dpo_compares_neighbours():
    made = batch()
    s = log_ratios(made).reshape(-1, 2)
    _, [told] = steps(DPO(), [made], 4)
    np.testing.assert_allclose(
        told["loss"] / told["weight"], np.log1p(np.exp(-0.1 * (s[:, 0] - s[:, 1]))).mean(), rtol=1e-5
    )
    assert told["weight"] == len(s)


def test_each_prompt_has_its_own_alpha():
    made = unpaired(batch())
    there = np.asarray(made.weight) > 0
    liked, alpha = np.asarray(made.desirable)[there], np.asarray(made.prompt_alpha, np.float64)[there]
    s = log_ratios(made) + np.log(alpha / 0.4)
    _, [told] = steps(RDRO(alpha=0.4, prompt_alpha="offset"), [made], 2)
    wanted = np.logaddexp(0, s) + liked * np.logaddexp(0, -s) / 0.4
    np.testing.assert_allclose(told["loss"] / told["weight"], wanted.mean(), rtol=1e-5)


def test_rows_a_loss_reads_and_a_batch_lacks_are_named():
    with pytest.raises(ValueError, match=r"batch\.mismatched: got None"):
        steps(KTO(), [batch()._replace(mismatched=None)])


def test_a_loss_without_statistics_costs_one_forward_pass():
    traced = []

    def counted(params, part):
        traced.append(part)
        return forward(params, part)

    made = unpaired(batch())
    step = make_train_step(counted, RDRO(alpha=0.4), OPTIMIZER, num_microbatches=4)
    jax.make_jaxpr(step)(init_state(WORDS, RDRO(alpha=0.4), OPTIMIZER), made)
    assert {part.tokens.shape[0] for part in traced} == {2}
    assert len(traced) == 2  # once for the shapes of the sums, once in the scan


def test_metrics_of_the_batch_by_hand():
    made = unpaired(batch())
    s = log_ratios(made)
    liked = np.asarray(made.desirable)[np.asarray(made.weight) > 0]
    _, [told] = steps(RDRO(alpha=0.4), [made], 4)
    wanted = {
        "rewards/chosen": s[liked].sum(),
        "ratio/rejected": np.exp(s[~liked]).sum(),
        "ratio_squared/chosen": np.exp(2 * s[liked]).sum(),
        "rewards/chosen_p5": np.quantile(s[liked], 0.05),
        "rewards/rejected_p95": np.quantile(s[~liked], 0.95),
        "ratio/over_bound": (np.exp(s) > 2.5).sum(),
        "counts/chosen": liked.sum(),
    }
    assert {key: float(told[key]) for key in wanted} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("loss", [RDRO(alpha=0.4), KTO(), BCO(), DPO()], ids=str)
def test_what_is_trained_beside_a_frozen_part_moves_as_the_whole_would(loss):
    """Also where a loss scores mismatched rows, keeps a running shift, or looks at pairs."""
    made = batch_for(loss)
    whole, [wanted] = steps(loss, [made])
    assemble = lambda params, state, _: {"words": state.frozen + params["words"]}  # noqa: E731
    step = jax.jit(make_train_step(forward, loss, OPTIMIZER, assemble=assemble))
    start = init_state(jax.tree.map(jnp.zeros_like, WORDS), loss, OPTIMIZER)._replace(frozen=WORDS["words"])
    after, got = step(start, made)
    np.testing.assert_allclose(got["loss"], wanted["loss"], rtol=1e-6)
    np.testing.assert_array_equal(after.frozen, WORDS["words"])
    np.testing.assert_allclose(after.frozen + after.params["words"], whole.params["words"], atol=1e-6, rtol=0)
