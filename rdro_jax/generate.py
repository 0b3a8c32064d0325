"""Batched sampling: one prefill, then one compiled loop over a preallocated key-value cache."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdro_jax.errors import ConfigError
from rdro_jax.models import Cache, ModelConfig, Params, forward_cached, init_cache, logits


class Progress(NamedTuple):
    """What the loop carries from token to token."""

    step: Int[Array, ""]
    tokens: Int[Array, "rows new"]
    stopped: Bool[Array, "rows"]
    cache: Cache


def generate(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    stop_ids: Sequence[int] = (),
    key: Array | None = None,
) -> list[list[int]]:
    """New tokens of each prompt, the stop token included as the last one where generation met one.

    Temperature 0 takes the likeliest token. Otherwise token t of prompt i is the argmax of logits / temperature plus
    Gumbel noise from `fold_in(fold_in(key, i), t)`: a function of the key, the prompt's place and the token's place
    only, so that two models given the same key share their random numbers and differ by what they are.

    Raises:
        ConfigError: a prompt is empty or holds an unknown token, or the sampling options contradict each other.

    >>> import jax, rdro_jax as rj
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = rj.ModelConfig("llama", vocab_size=32, **shape)
    >>> params = rj.init_params(config, jax.random.key(0))
    >>> tokens = rj.generate(params, config, [[5, 6], [7]], max_new_tokens=3)
    >>> [len(new) for new in tokens]
    [3, 3]
    """
    if not prompts:
        return []
    _check(prompts, config, max_new_tokens, temperature, key)
    distinct = {tuple(prompt): None for prompt in prompts}
    place = {prompt: row for row, prompt in enumerate(distinct)}
    padded, first_slot = _pad_left(list(distinct))
    tokens = _generate(
        params,
        config,
        padded,
        first_slot,
        np.array([place[tuple(prompt)] for prompt in prompts], np.int32),
        jnp.asarray(stop_ids, jnp.int32),
        jnp.float32(temperature),
        None if temperature == 0 else key,
        max_new_tokens=max_new_tokens,
    )
    return [_until_stop(row, set(stop_ids)) for row in np.asarray(tokens).tolist()]


def _check(
    prompts: Sequence[Sequence[int]], config: ModelConfig, max_new_tokens: int, temperature: float, key: Array | None
) -> None:
    if max_new_tokens < 1:
        raise ConfigError(f"generate: max_new_tokens is {max_new_tokens}; wanted at least 1")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"generate: temperature is {temperature}; wanted 0 (greedy) or a positive number")
    if temperature > 0 and key is None:
        raise ConfigError(f"generate: temperature {temperature} draws at random; give a key (or temperature 0)")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"generate: prompt {index} is empty; wanted at least one token")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise ConfigError(f"generate: prompt {index} holds a token outside 0..{config.vocab_size - 1}")


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "rows seq"], Int[np.ndarray, "rows"]]:
    """Prompts flush right in one array, and the column each begins at: all rows then write the same cache slot."""
    longest = max(len(prompt) for prompt in prompts)
    padded = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return padded, np.array([longest - len(prompt) for prompt in prompts], np.int32)


@partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def _generate(
    params: Params,
    config: ModelConfig,
    prompts: Int[Array, "distinct seq"],
    first_slot: Int[Array, "distinct"],
    prompt_of: Int[Array, "rows"],
    stop_ids: Int[Array, "stops"],
    temperature: Float[Array, ""],
    key: Array | None,
    *,
    max_new_tokens: int,
) -> Int[Array, "rows new"]:
    """New tokens of every row; whatever follows a row's first stop token is meaningless."""
    rows, prompt_length = prompt_of.shape[0], prompts.shape[1]
    keys = None if key is None else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))

    def append(progress: Progress, hidden: Float[Array, "rows d_model"], cache: Cache) -> Progress:
        token = _choose(logits(params, config, hidden), temperature, keys, progress.step)
        return Progress(
            progress.step + 1,
            jax.lax.dynamic_update_slice(progress.tokens, token[:, None], (0, progress.step)),
            progress.stopped | jnp.isin(token, stop_ids),
            cache,
        )

    def unfinished(progress: Progress) -> Bool[Array, ""]:
        return (progress.step < max_new_tokens) & ~progress.stopped.all()

    def one_more(progress: Progress) -> Progress:
        last = jax.lax.dynamic_slice(progress.tokens, (0, progress.step - 1), (rows, 1))
        slot = prompt_length + progress.step - 1
        hidden, cache = forward_cached(params, config, last, progress.cache, slot, first_slot[prompt_of])
        return append(progress, hidden[:, 0], cache)

    # The last new token is never an input, hence needs no slot.
    empty = init_cache(config, prompts.shape[0], prompt_length + max_new_tokens - 1)
    hidden, cache = forward_cached(params, config, prompts, empty, jnp.int32(0), first_slot)
    if prompts.shape[0] < rows:  # samples of one prompt share its prefill
        hidden, cache = hidden[prompt_of], jax.tree.map(lambda leaf: leaf[:, prompt_of], cache)
    nothing = Progress(jnp.int32(0), jnp.zeros((rows, max_new_tokens), jnp.int32), jnp.zeros(rows, bool), cache)
    return jax.lax.while_loop(unfinished, one_more, append(nothing, hidden[:, -1], cache)).tokens


def _choose(
    scores: Float[Array, "rows vocab"], temperature: Float[Array, ""], keys: Array | None, step: Int[Array, ""]
) -> Int[Array, "rows"]:
    """The next token of each row: the likeliest without keys, else drawn by the Gumbel-max rule, in float32.

    Source: Gumbel 1954; argmax(scores / temperature + noise) is a draw from softmax(scores / temperature).
    """
    if keys is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), scores.shape[1:]))(keys)
    return jnp.argmax(scores / temperature + noise, axis=-1).astype(jnp.int32)


def _until_stop(tokens: list[int], stop_ids: set[int]) -> list[int]:
    """The tokens up to and including the first stop token."""
    for at, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: at + 1]
    return tokens
