"""The blocked log-prob head against dense float64 numpy, its memory, and its indifference to packing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.batch import Batch
from rdro_jax.losses import HeadSplit, completion_lengths, completion_logps_from_hidden, token_logps
from rdro_jax.losses import head as head_module
from rdro_jax.losses.head import _blocks

D, V, T = 16, 100, 24


def dense(hidden, head, targets):
    """log softmax in float64, and the gradients of sum(logps * cotangent) in closed form."""
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    logits = hidden @ head.T
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.log(probabilities[np.arange(len(targets)), targets]), probabilities


def case(seed=0, vocab=V):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(T, D)).astype(np.float32),
        rng.normal(size=(vocab, D)).astype(np.float32),
        rng.integers(0, vocab, T),
        rng.normal(size=T).astype(np.float32),
    )


def compute(hidden, head, targets, cotangent, scored=None, **options):
    """Log-probs and their gradients, as one program."""

    @jax.jit
    def both(hidden, head):
        logps, vjp = jax.vjp(lambda h, w: token_logps(h, w, jnp.asarray(targets), scored, **options), hidden, head)
        return logps, *vjp(jnp.asarray(cotangent))

    return [np.asarray(x, np.float32) for x in both(hidden, head)]


@pytest.mark.parametrize(("max_block", "vocab"), [(7, V), (25, V), (1000, V), (7, 97), (64, 97)])
def test_value_and_gradients_equal_dense_float64(max_block, vocab, monkeypatch):
    monkeypatch.setattr(head_module, "SHORTEST_CHUNK", 6)  # chunks of 6 tokens; 10 of 24 have no loss
    hidden, head, targets, cotangent = case(vocab=vocab)
    scored = np.random.default_rng(5).permutation(T) >= 10
    logps, d_hidden, d_head = compute(hidden, head, targets, cotangent, jnp.asarray(scored), max_block=max_block)
    wanted, probabilities = dense(hidden, head, targets)
    d_logits = (scored * cotangent)[:, None] * (np.eye(vocab)[targets] - probabilities)
    np.testing.assert_allclose(logps, scored * wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_hidden, d_logits @ head, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_head, d_logits.T @ hidden, rtol=1e-5, atol=1e-5)


def test_bfloat16_operands_are_summed_in_float32():
    hidden, head, targets, cotangent = case()
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (hidden, head)]
    logps, d_hidden, d_head = compute(jnp.asarray(hidden, jnp.bfloat16), head, targets, cotangent, max_block=25)
    wanted, probabilities = dense(*rounded, targets)
    d_logits = cotangent[:, None] * (np.eye(V)[targets] - probabilities)
    np.testing.assert_allclose(logps, wanted, rtol=1e-5, atol=1e-5)  # nothing but the operands is rounded
    for got, exact in ((d_hidden, d_logits @ rounded[1]), (d_head, d_logits.T @ rounded[0])):
        assert np.linalg.norm(got - exact) < 4e-3 * np.linalg.norm(exact)


def test_a_frozen_head_costs_no_gradient():
    hidden, head, targets, _ = case()
    value = lambda h, w: token_logps(h, w, jnp.asarray(targets)).sum()  # noqa: E731
    products = [
        str(jax.make_jaxpr(jax.grad(value, wanted))(hidden, head)).count("dot_general[") for wanted in (0, (0, 1))
    ]
    assert products == [3, 4]  # logits, logits again, gradient of the tokens; gradient of the head


def test_blocks_divide_the_vocabularies_people_use():
    for vocab in (49_152, 128_256, 151_936, 152_064):
        blocks = _blocks(vocab, 8192)
        assert blocks.even
        assert 4096 <= blocks.size <= 8192


def test_logits_of_a_thousand_nats_stay_finite():
    hidden, head, targets, _ = case()
    assert all(np.isfinite(x).all() for x in compute(hidden * 1e3, head, targets, np.ones(T, np.float32), max_block=32))


def lowered(tokens, vocab, logps=token_logps):
    """The program of both gradients for so many tokens and words."""
    shapes = [((tokens, D), jnp.float32), ((vocab, D), jnp.float32), ((tokens,), jnp.int32)]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return jax.jit(jax.grad(lambda *arrays: logps(*arrays).sum(), argnums=(0, 1))).lower(*arguments).compile()


def test_no_buffer_of_tokens_by_vocabulary():
    tokens, vocab = 512, 32_768
    small, large = lowered(tokens, vocab), lowered(4 * tokens, 4 * vocab)
    assert not re.search(rf"{tokens},{vocab}|{vocab},{tokens}", small.as_text())
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
    assert temporaries[0] < 3 * 256 * 8192 * 4  # of one chunk by one block
    assert temporaries[1] - temporaries[0] < 4 * tokens * 256  # sixteen times the product: a few numbers a token more
    dense = lambda h, w, t: jnp.take_along_axis(jax.nn.log_softmax(h @ w.T), t[:, None], 1)  # noqa: E731
    assert f"{tokens},{vocab}" in lowered(tokens, vocab, dense).as_text()


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 4), (2, 2)])
def test_a_head_over_a_mesh_is_never_whole(fsdp, tensor):
    """Nor are its logits: of each device's part of the vocabulary, a block at a time."""
    tokens, vocab = 512, 32_768
    mesh = jax.make_mesh((fsdp, tensor), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    split = HeadSplit(mesh, tokens=(("fsdp",),), vocab=("tensor",), width=("fsdp",))
    laid = lambda shape, kind, *axes: jax.ShapeDtypeStruct(  # noqa: E731
        shape, kind, sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    )
    arguments = (
        laid((tokens, D), jnp.float32, "fsdp"),
        laid((vocab, D), jnp.float32, "tensor", "fsdp"),
        laid((tokens,), jnp.int32, "fsdp"),
    )
    total = lambda hidden, head, targets: token_logps(hidden, head, targets, split=split).sum()  # noqa: E731
    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*arguments).compile()
    assert f"f32[{vocab // tensor},{D // fsdp}]" in program.as_text()  # each device's own part
    assert f"[{vocab},{D}" not in program.as_text()
    assert not re.search(rf"{tokens},{vocab // tensor}|{vocab // tensor},{tokens}", program.as_text())
    # Beside the logits of one chunk by one block, the rows of that block gathered over fsdp and their gradients.
    assert program.memory_analysis().temp_size_in_bytes < 4 * (3 * 256 * 8192 + 3 * 8192 * D)


def packed_batch():
    """Row 0 holds examples of 5 and 7 tokens (2 and 3 of prompt), row 1 one of 9 (4 of prompt)."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, V, (2, 14))
    segment_ids, positions = np.zeros((2, 14), int), np.zeros((2, 14), int)
    loss_mask = np.zeros((2, 14), bool)
    spans = [(0, 0, 5, 2, 1), (0, 5, 12, 3, 2), (1, 0, 9, 4, 1)]
    for row, start, stop, prompt, segment in spans:
        segment_ids[row, start:stop] = segment
        positions[row, start:stop] = range(stop - start)
        loss_mask[row, start + prompt - 1 : stop - 1] = True
    weight = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    batch = Batch(tokens, positions, segment_ids, loss_mask, weight > 0, weight, np.zeros((2, 3)))
    return jax.tree.map(jnp.asarray, batch), spans


def test_completions_of_packed_rows_equal_their_own_sums():
    batch, spans = packed_batch()
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(2, 14, D)).astype(np.float32)
    head = rng.normal(size=(V, D)).astype(np.float32)
    logps = completion_logps_from_hidden(jnp.asarray(hidden), jnp.asarray(head), batch)
    lengths = completion_lengths(batch)
    wanted, counted = np.zeros((2, 3)), np.zeros((2, 3), int)
    for row, start, stop, prompt, segment in spans:
        predicting = slice(start + prompt - 1, stop - 1)
        targets = np.asarray(batch.tokens)[row, start + prompt : stop]
        wanted[row, segment - 1] = dense(hidden[row, predicting], head, targets)[0].sum()
        counted[row, segment - 1] = stop - start - prompt
    np.testing.assert_allclose(logps, wanted, rtol=1e-5)
    np.testing.assert_array_equal(lengths, counted)
