"""The blocked log-prob head against dense float64 numpy, its memory, and its indifference to packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.batch import Batch
from rdro_jax.losses import completion_lengths, completion_logps_from_hidden, token_logps
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


@pytest.mark.parametrize("max_block", [7, 25, 64, 1000])
@pytest.mark.parametrize("vocab", [V, 97])
def test_value_and_gradients_equal_dense_float64(max_block, vocab):
    hidden, head, targets, cotangent = case(vocab=vocab)
    logps, vjp = jax.vjp(lambda h, w: token_logps(h, w, jnp.asarray(targets), max_block=max_block), hidden, head)
    d_hidden, d_head = vjp(jnp.asarray(cotangent))
    wanted, probabilities = dense(hidden, head, targets)
    d_logits = cotangent[:, None] * (np.eye(vocab)[targets] - probabilities)
    np.testing.assert_allclose(logps, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_hidden, d_logits @ head, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(d_head, d_logits.T @ hidden, rtol=1e-5, atol=1e-5)


def test_blocks_divide_the_vocabularies_people_use():
    for vocab in (49_152, 128_256, 151_936, 152_064):
        blocks = _blocks(vocab, 8192)
        assert blocks.even
        assert 4096 <= blocks.size <= 8192


def test_logits_of_a_thousand_nats_stay_finite():
    hidden, head, targets, _ = case()
    logps, vjp = jax.vjp(lambda h, w: token_logps(h, w, jnp.asarray(targets), max_block=32), hidden * 1e3, head)
    assert np.isfinite(logps).all()
    assert all(np.isfinite(g).all() for g in vjp(jnp.ones(T)))


def test_no_buffer_of_tokens_by_vocabulary():
    tokens, vocab = 512, 32_768
    hidden = jax.ShapeDtypeStruct((tokens, D), jnp.float32)
    head = jax.ShapeDtypeStruct((vocab, D), jnp.float32)
    targets = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    grads = jax.jit(jax.grad(lambda h, w, t: token_logps(h, w, t).sum(), argnums=(0, 1)))
    compiled = grads.lower(hidden, head, targets).compile()
    assert f"{tokens},{vocab}" not in compiled.as_text()
    assert f"{vocab},{tokens}" not in compiled.as_text()
    block = tokens * 8192 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * block
    dense_grads = jax.jit(
        jax.grad(lambda h, w, t: jnp.take_along_axis(jax.nn.log_softmax(h @ w.T), t[:, None], 1).sum(), argnums=(0, 1))
    )
    assert f"{tokens},{vocab}" in dense_grads.lower(hidden, head, targets).compile().as_text()


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
