"""Attention in blocks against attention in one piece, against a float64 softmax."""

import jax
import numpy as np
import pytest

from rdro_jax.models.attention import attend, attend_causal, cache_mask, packed_mask


def draw(seq, heads=3, kv_heads=1, width=4, rows=2):
    rng = np.random.default_rng(0)
    shapes = [(rows, heads, seq, width), (rows, kv_heads, seq, width), (rows, kv_heads, seq, width)]
    queries, keys, values = (rng.normal(0, 2, shape).astype(np.float32) for shape in shapes)
    segments = np.sort(rng.integers(0, 4, (rows, seq)), axis=1)[:, ::-1]  # padding, 0, comes last
    return queries, keys, values, segments


def dense(queries, keys, values, mask):
    """Softmax of masked scores in float64, one query head at a time."""
    out = np.zeros(queries.shape)
    group = queries.shape[1] // keys.shape[1]
    for head in range(queries.shape[1]):
        key, value = (array[:, head // group].astype(np.float64) for array in (keys, values))
        scores = queries[:, head] @ key.swapaxes(1, 2) / np.sqrt(queries.shape[-1])
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ value
    return out


@pytest.mark.parametrize("seq", [600, 513, 130, 7])
def test_blocks_equal_float64_softmax(seq):
    queries, keys, values, segments = draw(seq)
    position = np.arange(seq)
    same = segments[:, :, None] == segments[:, None, :]
    mask = same & (position[None, :, None] >= position[None, None, :])
    np.testing.assert_array_equal(packed_mask(segments), mask)
    mixed = jax.jit(attend_causal)(queries, keys, values, mask)
    np.testing.assert_allclose(mixed, dense(queries, keys, values, mask), rtol=1e-5, atol=1e-5)


def test_gradients_of_blocks_equal_those_of_one_piece():
    *arrays, segments = draw(300, heads=4, kv_heads=2)
    mask = packed_mask(segments)

    def gradient(function):
        return jax.jit(jax.grad(lambda *qkv: (function(*qkv, mask) ** 2).sum(), argnums=(0, 1, 2)))(*arrays)

    for blocks, whole in zip(gradient(attend_causal), gradient(attend), strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4)


def test_huge_scores_stay_finite():
    queries, keys, values, segments = draw(9)
    mask = packed_mask(segments)
    out, back = jax.vjp(lambda q: attend(q, keys, values, mask), queries * 1e15)
    assert np.isfinite(out).all()
    assert np.isfinite(back(np.ones_like(out))[0]).all()


def test_cache_mask_sees_from_the_first_token_to_the_query():
    mask = np.asarray(cache_mask(np.array([0, 2]), np.int32(3), 2, 6))
    assert mask[0].tolist() == [[True, True, True, True, False, False], [True, True, True, True, True, False]]
    assert mask[1].tolist() == [[False, False, True, True, False, False], [False, False, True, True, True, False]]
