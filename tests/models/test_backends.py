"""Every kernel that can run here against the reference, and each refused where it could not compute the model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.models import ModelConfig, backends
from rdro_jax.models.attention import attend, in_window, packed_mask
from rdro_jax.models.backends import attend_fused, attend_splash, choose_backend
from rdro_jax.models.blocked import BLOCK, attend_blocked, seen_pairs

IDS = np.array([[1] * 50 + [2] * 70 + [0] * 8, [1] * 128])
MASK = packed_mask(jnp.asarray(IDS))
REAL = (IDS > 0)[:, None, :, None]
CONFIG = ModelConfig("llama", 64, 256, 2, 4, 2, 64, 64, compute_dtype="bfloat16")


@pytest.fixture(scope="module")
def arrays():
    """Queries, keys and values of 4 heads over 2, in packed rows of 128 tokens."""
    draw = np.random.default_rng(0).standard_normal
    return tuple(jnp.asarray(draw((2, heads, 128, 64)), jnp.float32) for heads in (4, 2, 2))


KERNELS = {
    "blocked": lambda q, k, v: attend_blocked(q, k, v, MASK),
    "fused": lambda q, k, v: attend_fused(q, k, v, MASK, implementation="xla"),
    "splash": lambda q, k, v: attend_splash(q, k, v, jnp.asarray(IDS), interpret=True),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_computes_what_the_reference_does(name, arrays):
    wanted = attend(*arrays, MASK)
    np.testing.assert_allclose(jax.jit(KERNELS[name])(*arrays) * REAL, wanted * REAL, atol=2e-6)


@pytest.mark.parametrize("name", ["blocked", "fused"])
def test_gradients_are_the_references(name, arrays):
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32) * REAL
    grads = lambda kernel: jax.grad(lambda qkv: (kernel(*qkv) * direction).sum())(arrays)  # noqa: E731
    for got, wanted in zip(grads(KERNELS[name]), grads(lambda *qkv: attend(*qkv, MASK)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "changes", "seq", "wanted"),
    [
        ("cpu", {}, 128, "blocked"),
        ("cpu", {"sliding_window": 9}, 128, "blocked"),
        ("cpu", {}, 100, "xla"),
        ("gpu", {}, 128, "xla"),
        ("tpu", {}, 128, "splash"),
        ("tpu", {}, 192, "xla"),
        ("tpu", {"head_dim": 96}, 128, "xla"),
        ("tpu", {"sliding_window": 9}, 128, "xla"),
        ("cpu", {"attention": "cudnn"}, 128, "cudnn"),
    ],
)
def test_the_platform_chooses_among_what_can_compute(platform, changes, seq, wanted, monkeypatch):
    monkeypatch.setattr(backends.jax, "default_backend", lambda: platform)
    assert choose_backend(replace(CONFIG, **changes), seq) == wanted


@pytest.mark.parametrize(
    ("attention", "seq", "message"),
    [
        ("blocked", 100, "blocked wants rows of a multiple of 64 tokens, got 100"),
        ("splash", 100, "splash wants rows of a multiple of 128 tokens, got 100"),
        ("cudnn", 7, "cudnn wants rows of an even"),
    ],
)
def test_what_is_named_and_cannot_is_refused(attention, seq, message):
    with pytest.raises(ConfigError, match=message):
        choose_backend(replace(CONFIG, attention=attention), seq)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_a_part_of_the_queries_under_a_window(dtype):
    """What a device of a context axis computes for a layer with a window, heads in groups of three; gradients too."""
    draw = np.random.default_rng(3).standard_normal
    arrays = [jnp.asarray(draw((2, n, length, 16)), dtype) for n, length in ((6, 128), (2, 256), (2, 256))]
    direction = draw(arrays[0].shape)
    ids = jnp.asarray([[1] * 100 + [2] * 156, [1] * 200 + [0] * 56])
    mask = (packed_mask(ids) & in_window(70, jnp.int32(0), 256, 256))[:, 128:]

    def both(kernel):
        wide = lambda *qkv: (kernel(*qkv, mask).astype(jnp.float32) * direction).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(wide, (0, 1, 2)))(*arrays)

    wanted, got = both(attend), both(attend_blocked)
    close = {"float32": 2e-5, "bfloat16": 0.06}[dtype]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=close, atol=close), got, wanted)


def test_blocks_that_no_query_sees_are_not_visited():
    ids = jnp.asarray([[1] * 64 + [2] * 64 + [3] * 128, [1] * 256])
    pairs = seen_pairs(packed_mask(ids))
    visited = list(zip(*(np.asarray(x[: pairs.count]) for x in pairs[:3]), strict=True))
    short = [(0, 0, 0), (0, 64, 64), (0, 128, 128), (0, 192, 128), (0, 192, 192)]
    long = [(1, query, key) for query in range(0, 256, BLOCK) for key in range(0, query + 1, BLOCK)]
    assert visited == short + long


def test_splash_on_parts_of_a_row_is_splash_on_the_row():
    """What each device of a context axis computes: its own queries, keys and values of the row; gradients too."""
    draw = np.random.default_rng(2).standard_normal
    queries, keys, values, direction = (jnp.asarray(draw((1, n, 256, 64)), jnp.float32) for n in (2, 1, 1, 2))
    ids = jnp.asarray([[1] * 100 + [2] * 156])

    def in_parts(queries, keys, values):
        parts = [
            attend_splash(queries[:, :, at : at + 128], keys, values, ids, part=at // 128, parts=2, interpret=True)
            for at in (0, 128)
        ]
        return jnp.concatenate(parts, axis=2)

    def both(kernel):
        return jax.jit(jax.value_and_grad(lambda *qkv: (kernel(*qkv) * direction).sum(), (0, 1, 2)))

    wanted = both(lambda *qkv: attend(*qkv, packed_mask(ids)))(queries, keys, values)
    got = both(in_parts)(queries, keys, values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got, wanted)
