"""Generation with the cache against generation by running the whole forward pass anew for every token."""

import importlib

import jax
import numpy as np
import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.generate import generate
from rdro_jax.models import ModelConfig, forward, init_params, logits

CONFIG = ModelConfig("llama", 53, 24, 2, 3, 1, 8, 32, tie_word_embeddings=True)
PROMPTS = [[5], [7, 1, 9, 30], [2, 2], [7, 1, 9, 30], [11, 12, 13, 14, 15, 16]]


@pytest.fixture(scope="module")
def params():
    # A wide spread, so that the likeliest token changes from step to step.
    return jax.tree.map(lambda leaf: leaf * 8, init_params(CONFIG, jax.random.key(0)))


@jax.jit
def all_scores(params, tokens):
    return logits(params, CONFIG, forward(params, CONFIG, tokens))


def next_scores(params, tokens):
    # Padded behind, where no token looks: one compilation for every length.
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(all_scores(params, padded)[0, len(tokens) - 1])


def greedy_anew(params, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_scores(params, tokens).argmax()))
    return tokens[len(prompt) :]


def test_greedy_with_cache_equals_greedy_without(params):
    wanted = [greedy_anew(params, prompt, 6) for prompt in PROMPTS]
    assert generate(params, CONFIG, PROMPTS, max_new_tokens=6) == wanted
    assert len({tuple(tokens) for tokens in wanted}) > 2


def test_stop_token_is_kept_as_the_last_one(params):
    whole = generate(params, CONFIG, PROMPTS, max_new_tokens=6)
    stop = whole[1][2]
    for stopped, full in zip(generate(params, CONFIG, PROMPTS, max_new_tokens=6, stop_ids=[stop]), whole, strict=True):
        wanted = full[: full.index(stop) + 1] if stop in full else full
        assert stopped == wanted


def test_loop_ends_when_all_have_stopped(params, monkeypatch):
    """With every token a stop token, the places after the first are never computed: they stay 0."""
    module = importlib.import_module("rdro_jax.generate")
    inner, computed = module._generate, []
    monkeypatch.setattr(
        module, "_generate", lambda *args, **options: computed.append(inner(*args, **options)) or computed[-1]
    )
    generate(params, CONFIG, PROMPTS[:2], max_new_tokens=6)
    out = generate(params, CONFIG, PROMPTS[:2], max_new_tokens=6, stop_ids=range(CONFIG.vocab_size))
    assert [len(tokens) for tokens in out] == [1, 1]
    assert [bool(np.asarray(tokens)[:, 1:].any()) for tokens in computed] == [True, False]


def test_sampling_is_the_gumbel_max_rule_of_its_key(params):
    key, temperature = jax.random.key(3), 0.7
    out = generate(params, CONFIG, PROMPTS, max_new_tokens=4, temperature=temperature, key=key)
    for index, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        for step in range(4):
            draw = jax.random.fold_in(jax.random.fold_in(key, index), step)
            noise = np.asarray(jax.random.gumbel(draw, (CONFIG.vocab_size,)))
            tokens.append(int((next_scores(params, tokens) / temperature + noise).argmax()))
        assert out[index] == tokens[len(prompt) :]


def test_equal_prompts_draw_different_samples(params):
    out = generate(params, CONFIG, [[4, 8]] * 12, max_new_tokens=5, temperature=2.0, key=jax.random.key(0))
    assert len({tuple(tokens) for tokens in out}) > 8


def test_sampled_frequencies_are_the_softmax(params):
    prompt, count, temperature = [7, 1, 9], 4000, 1.5
    out = generate(params, CONFIG, [prompt] * count, max_new_tokens=1, temperature=temperature, key=jax.random.key(5))
    scores = next_scores(params, prompt).astype(np.float64) / temperature
    wanted = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    drawn = np.bincount([tokens[0] for tokens in out], minlength=CONFIG.vocab_size) / count
    # Five standard errors of a frequency.
    assert (np.abs(drawn - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / count) + 1 / count).all()


def test_a_prompt_does_not_depend_on_its_batch(params):
    together = generate(params, CONFIG, PROMPTS, max_new_tokens=4, temperature=1.0, key=jax.random.key(9))
    alone = generate(params, CONFIG, PROMPTS[:1], max_new_tokens=4, temperature=1.0, key=jax.random.key(9))
    assert together[0] == alone[0]


def test_no_prompts_no_completions(params):
    assert generate(params, CONFIG, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[53]], {}, r"prompt 0 holds a token outside 0\.\.52"),
        ([[-1]], {}, "prompt 0 holds a token outside"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"temperature": 1.0}, "give a key"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_unusable_requests_are_refused(params, prompts, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(params, CONFIG, prompts, **{"max_new_tokens": 2, **options})
