"""The decoder against a float64 computation written from the papers, token by token."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdro_jax.models import (
    ModelConfig,
    Remat,
    RopeConfig,
    abstract_params,
    init_cache,
    init_params,
    logits,
    output_embedding,
)
from rdro_jax.models import forward as eager_forward
from rdro_jax.models import forward_cached as eager_forward_cached

# Compiled once per shape; eagerly the scan would be compiled at every call.
forward = jax.jit(eager_forward, static_argnames=("config", "constrain"))
forward_cached = jax.jit(eager_forward_cached, static_argnames="config")

# Everything at once: odd heads in groups, llama3 rope with wavelengths on both sides, biases, normalised heads, untied.
EVERYTHING = ModelConfig(
    model_type="qwen3",
    vocab_size=61,
    d_model=24,
    n_layers=3,
    n_heads=9,
    n_kv_heads=3,
    head_dim=8,
    d_ff=40,
    rms_norm_eps=1e-5,
    rope=RopeConfig("llama3", 500.0, 8.0, 1.0, 4.0, 32),
    qkv_bias=True,
    qk_norm=True,
)
PLAIN = replace(
    EVERYTHING,
    model_type="llama",
    rope=RopeConfig(theta=10000.0),
    tie_word_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    n_heads=4,
    n_kv_heads=4,
)


def random_params(config, seed=0):
    """Parameters without a single 0 or 1 that could hide a missing term."""
    leaves, tree = jax.tree.flatten(abstract_params(config))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0.3, 0.3, leaf.shape), jnp.float32) for leaf in leaves])


def random_tokens(config, rows, seq, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, (rows, seq)), jnp.int32)


# ---- the oracle: one sequence, float64, loops over layers, heads and tokens, rotation by complex numbers


def oracle_frequencies(rope, head_dim):
    frequencies = []
    for pair in range(head_dim // 2):
        frequency = 1.0 / rope.theta ** (2 * pair / head_dim)
        wavelength = 2 * np.pi / frequency
        if rope.kind == "llama3":
            low = rope.original_max_position_embeddings / rope.low_freq_factor
            high = rope.original_max_position_embeddings / rope.high_freq_factor
            smooth = (rope.original_max_position_embeddings / wavelength - rope.low_freq_factor) / (
                rope.high_freq_factor - rope.low_freq_factor
            )
            if wavelength > low:
                frequency = frequency / rope.factor
            elif wavelength > high:
                frequency = (1 - smooth) * frequency / rope.factor + smooth * frequency
        frequencies.append(frequency)
    return np.array(frequencies)


def oracle_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def oracle_rotate(x, position, frequencies):
    half = len(frequencies)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([turned.real, turned.imag])


def oracle_hidden(params, config, tokens):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    frequencies = oracle_frequencies(config.rope, config.head_dim)
    x = params["embed_tokens"]["embedding"][np.asarray(tokens)]
    for index in range(config.n_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        x = x + oracle_attention(layer["self_attn"], config, frequencies, oracle_norm(
            x, layer["input_layernorm"]["scale"], config.rms_norm_eps
        ))  # fmt: skip
        h = oracle_norm(x, layer["post_attention_layernorm"]["scale"], config.rms_norm_eps)
        gate = h @ layer["mlp"]["gate_proj"]["kernel"]
        up = h @ layer["mlp"]["up_proj"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down_proj"]["kernel"]
    return oracle_norm(x, params["norm"]["scale"], config.rms_norm_eps)


def oracle_heads(attn, name, config, h, frequencies):
    projected = h @ attn[f"{name}_proj"]["kernel"] + attn[f"{name}_proj"].get("bias", 0.0)
    heads = projected.reshape(len(h), -1, config.head_dim)
    if config.qk_norm and name != "v":
        heads = oracle_norm(heads, attn[f"{name}_norm"]["scale"], config.rms_norm_eps)
    if name == "v":
        return heads
    return np.array([[oracle_rotate(head, t, frequencies) for head in heads[t]] for t in range(len(h))])


def oracle_attention(attn, config, frequencies, h):
    q, k, v = (oracle_heads(attn, name, config, h, frequencies) for name in "qkv")
    out = np.zeros((len(h), config.n_heads, config.head_dim))
    for t in range(len(h)):
        for head in range(config.n_heads):
            group = head // (config.n_heads // config.n_kv_heads)
            scores = k[: t + 1, group] @ q[t, head] / np.sqrt(config.head_dim)
            weights = np.exp(scores - scores.max())
            out[t, head] = weights / weights.sum() @ v[: t + 1, group]
    return out.reshape(len(h), -1) @ attn["o_proj"]["kernel"]


# ---- tests


@pytest.mark.parametrize("config", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_forward_equals_float64_oracle(config):
    params, tokens = random_params(config), random_tokens(config, 2, 23)
    hidden = forward(params, config, tokens)
    for row in range(2):
        np.testing.assert_allclose(hidden[row], oracle_hidden(params, config, tokens[row]), rtol=2e-5, atol=2e-5)


def test_logits_are_float32_scores_of_the_right_table():
    params = random_params(EVERYTHING)
    hidden = forward(params, EVERYTHING, random_tokens(EVERYTHING, 1, 5))
    wanted = np.asarray(hidden, np.float64) @ np.asarray(params["lm_head"]["embedding"], np.float64).T
    scores = logits(params, EVERYTHING, hidden)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)
    assert output_embedding(random_params(PLAIN), PLAIN).shape == (PLAIN.vocab_size, PLAIN.d_model)
    tied = random_params(PLAIN)
    assert output_embedding(tied, PLAIN) is tied["embed_tokens"]["embedding"]
    assert "lm_head" not in tied


@pytest.mark.parametrize("config", [EVERYTHING, PLAIN], ids=["everything", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_abstract_params_are_what_init_makes(config, dtype):
    made, abstract = init_params(config, jax.random.key(0), dtype=dtype), abstract_params(config, dtype=dtype)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    assert type(made["layers"]) is dict
    spread = made["layers"]["mlp"]["up_proj"]["kernel"].astype(jnp.float32).std()
    assert 0.018 < spread < 0.022
    first, second = made["layers"]["self_attn"]["q_proj"]["kernel"][:2]
    assert not jnp.array_equal(first, second)


def packed_row(config, lengths, seq):
    """Segments one after the other, then padding: tokens, positions, segment ids."""
    tokens = random_tokens(config, 1, seq)[0]
    positions, segments = np.zeros(seq, np.int32), np.zeros(seq, np.int32)
    starts = np.cumsum([0, *lengths])
    for slot, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        positions[start : start + length] = np.arange(length)
        segments[start : start + length] = slot + 1
    return tokens[None], jnp.asarray(positions)[None], jnp.asarray(segments)[None], starts


@pytest.mark.parametrize("config", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_packed_equals_one_by_one(config):
    params, lengths = random_params(config), [5, 11, 1, 7]
    tokens, positions, segments, starts = packed_row(config, lengths, 30)
    packed = forward(params, config, tokens, positions, segments)
    for start, length in zip(starts, lengths, strict=False):
        alone = forward(params, config, jnp.roll(tokens, -start, axis=1))[:, :length]
        np.testing.assert_allclose(packed[:, start : start + length], alone, rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(packed).all()


def test_segments_are_isolated_exactly():
    params = random_params(EVERYTHING)
    tokens, positions, segments, starts = packed_row(EVERYTHING, [5, 11, 7], 30)

    def second_segment(table):
        changed = params | {"embed_tokens": {"embedding": table[0]}}
        hidden = forward(changed, EVERYTHING, tokens, positions, segments)
        return (hidden[0, starts[1] : starts[2]] ** 2).sum()

    # One embedding row per position, so that a gradient can be told apart by the place it came from.
    table = params["embed_tokens"]["embedding"][tokens]
    tokens = jnp.arange(30)[None]
    gradient = jax.jit(jax.grad(second_segment))(table)[0]
    inside = np.zeros(30, bool)
    inside[starts[1] : starts[2]] = True
    assert (gradient[~inside] == 0).all()
    assert (jnp.abs(gradient[inside]).max(-1) > 0).all()


def test_tokens_never_see_the_future():
    params, tokens = random_params(PLAIN), random_tokens(PLAIN, 1, 16)
    changed = tokens.at[0, 9].set((tokens[0, 9] + 1) % PLAIN.vocab_size)
    before, after = forward(params, PLAIN, tokens), forward(params, PLAIN, changed)
    np.testing.assert_array_equal(before[0, :9], after[0, :9])
    assert jnp.abs(before[0, 9:] - after[0, 9:]).max() > 1e-3


def test_remat_changes_memory_not_numbers():
    """Gradients to 1e-6 of their largest entry; what is kept for the backward pass falls from policy to policy."""
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 64}
    config = ModelConfig("llama", vocab_size=31, **shape)
    params, tokens = random_params(config), random_tokens(config, 4, 64)

    def compile_gradient(remat):
        model = replace(config, remat=remat)
        return jax.jit(jax.grad(lambda p: (forward(p, model, tokens) ** 2).sum())).lower(params).compile()

    compiled = {remat: compile_gradient(remat) for remat in get_args(Remat)}
    gradients = {remat: step(params) for remat, step in compiled.items()}
    for remat in ("dots", "named", "full"):
        for got, wanted in zip(*map(jax.tree.leaves, (gradients[remat], gradients["none"])), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * jnp.abs(wanted).max(), err_msg=remat)
    kept = [step.memory_analysis().temp_size_in_bytes for step in compiled.values()]
    assert kept == sorted(set(kept), reverse=True), dict(zip(compiled, kept, strict=True))


def test_position_257_is_not_256_in_bfloat16():
    config = replace(PLAIN, compute_dtype="bfloat16")
    params, tokens = random_params(config), random_tokens(config, 1, 2)
    near = forward(params, config, tokens, jnp.array([[0, 256]]))
    far = forward(params, config, tokens, jnp.array([[0, 257]]))
    assert near.dtype == jnp.bfloat16
    assert not jnp.array_equal(near[0, 1], far[0, 1])


def test_constrain_sees_embedding_and_every_layer():
    seen = []

    def constrain(name, x):
        seen.append((name, x.shape))
        return x

    forward(random_params(PLAIN), PLAIN, random_tokens(PLAIN, 2, 4), constrain=constrain)
    assert set(seen) == {("activations", (2, 4, PLAIN.d_model))}
    assert len(seen) >= 2


def test_unknown_token_gives_nan_not_a_neighbour():
    """NaN at that token; whether it spreads to tokens before it is left to the matrix product (0 * NaN)."""
    hidden = forward(random_params(PLAIN), PLAIN, jnp.array([[3, PLAIN.vocab_size], [3, 4]]))
    assert jnp.isnan(hidden[0, 1]).all()
    assert jnp.isfinite(hidden[1]).all()


@pytest.mark.parametrize("config", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_cached_equals_uncached_with_left_padding(config):
    params, tokens = random_params(config), random_tokens(config, 2, 10)
    first_slot = jnp.array([0, 4])
    cache = init_cache(config, 2, 10)
    hidden = []
    for start, end in [(0, 6), (6, 7), (7, 10)]:
        part, cache = forward_cached(params, config, tokens[:, start:end], cache, jnp.int32(start), first_slot)
        hidden.append(part)
    hidden = jnp.concatenate(hidden, axis=1)
    np.testing.assert_allclose(hidden[0], forward(params, config, tokens[:1])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden[1, 4:], forward(params, config, tokens[1:, 4:])[0], rtol=1e-5, atol=1e-5)
    assert jnp.isfinite(hidden).all()
