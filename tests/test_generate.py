"""Generation with the cache against generation by running the whole forward pass anew for every token."""

import importlib

import jax
import numpy as np
import pytest

from rdro_jax.errors import ConfigError
from rdro_jax.generate import Sampling, generate, sample, unpad
from rdro_jax.generate.choose import Limits, restrict
from rdro_jax.models import ModelConfig, forward, init_params, logits
from rdro_jax.parallel import MeshConfig, make_mesh, param_shardings

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
    """With a stop token in second place, the places after it are never computed."""
    module = importlib.import_module("rdro_jax.generate.sample")
    inner, states = module.extend, []
    monkeypatch.setattr(module, "extend", lambda *args, **more: states.append(inner(*args, **more)) or states[-1])
    [whole] = generate(params, CONFIG, PROMPTS[1:2], max_new_tokens=6)
    assert [int(state.step) for state in states] == [6]
    [stopped] = generate(params, CONFIG, PROMPTS[1:2], max_new_tokens=6, stop_ids=[whole[1]])
    assert (stopped, int(states[-1].step)) == (whole[:2], 2)
    generate(params, CONFIG, PROMPTS[1:2], max_new_tokens=6, stop_ids=[whole[0]])
    assert len(states) == 2


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


# ---- what a draw may choose from


def kept(probabilities, **limits):
    """Indices a draw may choose, by brute force over sorted lists; the oracle of `restrict`."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[: limits.get("top_k")]
    total, before, chosen = sum(probabilities[i] for i in order), 0.0, []
    for i in order:
        if not chosen or (
            before < limits.get("top_p", 1.0) and probabilities[i] >= limits["min_p"] * probabilities[order[0]]
        ):
            chosen.append(i)
        before += probabilities[i] / total
    return sorted(chosen)


@pytest.mark.parametrize("top_k", [None, 1, 3])
@pytest.mark.parametrize("top_p", [1.0, 0.55, 0.01])
@pytest.mark.parametrize("min_p", [0.0, 0.3])
def test_restriction_is_brute_force(top_k, top_p, min_p):
    rows = np.random.default_rng(0).dirichlet(np.ones(9), 20)
    limits = Limits(*np.float32([1.0, 0]), np.float32(top_p), np.float32(min_p), np.float32(1))
    limits = limits._replace(top_k=np.int32(9 if top_k is None else top_k))
    out = np.asarray(restrict(np.log(rows).astype(np.float32), limits))
    for row, scores in zip(rows, out, strict=True):
        assert np.flatnonzero(np.isfinite(scores)).tolist() == kept(row.tolist(), top_k=top_k, top_p=top_p, min_p=min_p)
        np.testing.assert_allclose(scores[np.isfinite(scores)], np.log(row)[np.isfinite(scores)], rtol=1e-6)


def test_top_k_of_one_is_greedy(params):
    wanted = generate(params, CONFIG, PROMPTS, max_new_tokens=4)
    drawn = sample(params, CONFIG, PROMPTS, Sampling(4, temperature=3.0, top_k=1), key=jax.random.key(0))
    assert [done.tokens for done in drawn] == wanted


def test_repetition_penalty_is_transformers_rule(params):
    """Scores of tokens of prompt and completion are divided where positive, multiplied where negative."""
    penalty = 1.8
    out = sample(params, CONFIG, PROMPTS, Sampling(6, repetition_penalty=penalty))
    for prompt, done in zip(PROMPTS, out, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            scores, seen = next_scores(params, tokens).copy(), sorted(set(tokens))
            scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
            tokens.append(int(scores.argmax()))
        assert done.tokens == tokens[len(prompt) :]
    assert [done.tokens for done in out] != generate(params, CONFIG, PROMPTS, max_new_tokens=6)


# ---- what comes out


def test_log_probs_are_the_models_own(params):
    """Those of the unmodified distribution, whatever was drawn from."""
    sampling = Sampling(5, temperature=0.5, top_k=7, repetition_penalty=1.3)
    for prompt, done in zip(PROMPTS, sample(params, CONFIG, PROMPTS, sampling, key=jax.random.key(1)), strict=True):
        tokens = list(prompt)
        for token, logp in zip(done.tokens, done.logps, strict=True):
            scores = next_scores(params, tokens).astype(np.float64)
            assert logp == pytest.approx(scores[token] - np.logaddexp.reduce(scores), abs=1e-4)
            tokens.append(token)


def test_several_completions_stand_side_by_side(params):
    key = jax.random.key(2)
    several = sample(params, CONFIG, PROMPTS[:2], Sampling(4, temperature=1.0, n=3), key=key)
    one_each = sample(params, CONFIG, [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, Sampling(4, temperature=1.0), key=key)
    assert [done.tokens for done in several] == [done.tokens for done in one_each]
    assert len({tuple(done.tokens) for done in several}) > 4


def test_stop_strings_end_with_the_token_that_completes_one(params):
    """Tokens are spelled as numbers, so that a string can span two of them."""
    whole = generate(params, CONFIG, PROMPTS, max_new_tokens=40)
    decode = lambda tokens: "".join(f"{token:02d}" for token in tokens)  # noqa: E731
    stop = decode(whole[1])[41:44]  # begins in the middle of a token, beyond the first look of the host
    out = sample(params, CONFIG, PROMPTS, Sampling(40), stop_strings=[stop], decode=decode)
    for done, full in zip(out, whole, strict=True):
        text = decode(full)
        wanted = full[: -(-(text.index(stop) + 3) // 2)] if stop in text else full
        assert done.tokens == wanted
        assert len(done.logps) == len(wanted)
    assert len(out[1].tokens) < 40


def test_padding_on_either_side_is_taken_off(params):
    tokens = np.array([[5, 0, 0], [7, 1, 9]])
    left = np.array([[0, 0, 5], [7, 1, 9]])
    wanted = generate(params, CONFIG, [[5], [7, 1, 9]], max_new_tokens=3)
    for padded, mask in ((tokens, tokens > 0), (left, left > 0)):
        assert generate(params, CONFIG, unpad(padded, mask), max_new_tokens=3) == wanted


def test_wider_rows_give_the_same_tokens(params):
    out = sample(params, CONFIG, PROMPTS, Sampling(5), bucket=16)
    assert [done.tokens for done in out] == generate(params, CONFIG, PROMPTS, max_new_tokens=5)


def test_sharded_parameters_give_the_same_tokens():
    config = ModelConfig("llama", 64, 32, 2, 4, 2, 8, 64)
    params = jax.tree.map(lambda leaf: leaf * 8, init_params(config, jax.random.key(0)))
    spread = jax.device_put(params, param_shardings(params, make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))))
    prompts = [[5], [7, 1, 9, 30]]
    assert generate(spread, config, prompts, max_new_tokens=6) == generate(params, config, prompts, max_new_tokens=6)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(2, top_k=0), "top_k is 0; wanted at least 1"),
        (Sampling(2, top_p=0.0), "top_p is 0.0; wanted above 0"),
        (Sampling(2, min_p=1.5), "min_p is 1.5; wanted 0 to 1"),
        (Sampling(2, repetition_penalty=0.0), "repetition_penalty is 0.0"),
        (Sampling(2, n=0), "n is 0; wanted at least 1"),
        (Sampling(2, n=2), "n is 2 at temperature 0"),
    ],
)
def test_options_out_of_range_are_refused(params, sampling, message):
    with pytest.raises(ConfigError, match=message):
        sample(params, CONFIG, PROMPTS, sampling)


def test_stop_strings_want_a_decoder(params):
    with pytest.raises(ConfigError, match="stop_strings want"):
        sample(params, CONFIG, PROMPTS, Sampling(2), stop_strings=["x"])


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
