"""Two compiled programs: the prompts into a key-value cache, and a loop that adds tokens until all rows stopped."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdro_jax.generate.choose import Limits, draw, penalise, restrict
from rdro_jax.models import Cache, ModelConfig, Params, forward_cached, init_cache, logits


class Traits(NamedTuple):
    """What of the options changes the program: hashable, a static argument."""

    max_new_tokens: int
    restricts: bool
    penalises: bool
    scores: bool
    """Whether log-probs are wanted."""


class Progress(NamedTuple):
    """What is carried from token to token. After a row's stop token its entries mean nothing."""

    step: Int[Array, ""]
    """New tokens so far."""
    tokens: Int[Array, "rows new"]
    logps: Float[Array, "rows new"]
    """Log-probabilities under the unmodified model, in nats; of width 0 where they are not wanted."""
    stopped: Bool[Array, "rows"]
    seen: Bool[Array, "rows vocab"]
    """Tokens of the prompt and since; of width 0 where nothing is penalised."""
    cache: Cache


class Request(NamedTuple):
    """What stays the same from token to token."""

    first_slot: Int[Array, "rows"]
    """Column of each row's first token: prompts are flush right."""
    stop_ids: Int[Array, "stops"]
    limits: Limits
    keys: Array | None
    """One random key per row; None takes the likeliest token."""


@partial(jax.jit, static_argnames=("config", "traits"))
def prefill(
    params: Params,
    config: ModelConfig,
    prompts: Int[Array, "distinct seq"],
    prompt_of: Int[Array, "rows"],
    request: Request,
    *,
    traits: Traits,
) -> Progress:
    """The state after the first new token. Rows of one prompt share its pass; `prompt_of` says which is whose."""
    rows, (distinct, length) = prompt_of.shape[0], prompts.shape
    # The last new token is never an input, hence needs no slot.
    empty = init_cache(config, distinct, length + traits.max_new_tokens - 1)
    first_slot = jnp.zeros(distinct, jnp.int32).at[prompt_of].set(request.first_slot)
    hidden, cache = forward_cached(params, config, prompts, empty, jnp.int32(0), first_slot)
    if distinct < rows:
        hidden, cache = hidden[prompt_of], jax.tree.map(lambda leaf: leaf[:, prompt_of], cache)
    width = traits.max_new_tokens
    nothing = Progress(
        jnp.int32(0),
        jnp.zeros((rows, width), jnp.int32),
        jnp.zeros((rows, width if traits.scores else 0)),
        jnp.zeros(rows, bool),
        _seen(prompts, first_slot, config)[prompt_of] if traits.penalises else jnp.zeros((rows, 0), bool),
        cache,
    )
    return _append(params, config, nothing, hidden[:, -1], cache, request, traits)


def _seen(
    prompts: Int[Array, "distinct seq"], first_slot: Int[Array, "distinct"], config: ModelConfig
) -> Bool[Array, "distinct vocab"]:
    """Which tokens each prompt holds, padding not counted."""
    real = jnp.arange(prompts.shape[1])[None] >= first_slot[:, None]
    rows = jnp.arange(prompts.shape[0])[:, None]
    return jnp.zeros((prompts.shape[0], config.vocab_size), bool).at[rows, prompts].max(real)


@partial(jax.jit, static_argnames=("config", "traits", "length"), donate_argnames="progress")
def extend(
    params: Params,
    config: ModelConfig,
    progress: Progress,
    until: Int[Array, ""],
    request: Request,
    *,
    traits: Traits,
    length: int,
) -> Progress:
    """The state after `until` new tokens, or earlier if all rows have stopped; prompts are `length` columns wide."""

    def unfinished(progress: Progress) -> Bool[Array, ""]:
        return (progress.step < until) & ~progress.stopped.all()

    def one_more(progress: Progress) -> Progress:
        last = jax.lax.dynamic_slice(progress.tokens, (0, progress.step - 1), (progress.tokens.shape[0], 1))
        slot = length + progress.step - 1
        hidden, cache = forward_cached(params, config, last, progress.cache, slot, request.first_slot)
        return _append(params, config, progress, hidden[:, 0], cache, request, traits)

    return jax.lax.while_loop(unfinished, one_more, progress)


def _append(
    params: Params,
    config: ModelConfig,
    progress: Progress,
    hidden: Float[Array, "rows d_model"],
    cache: Cache,
    request: Request,
    traits: Traits,
) -> Progress:
    """The state with one more token chosen from the last hidden states."""
    scores, (limits, step) = logits(params, config, hidden), (request.limits, progress.step)
    usual = penalise(scores, progress.seen, limits.repetition_penalty) if traits.penalises else scores
    if request.keys is not None:
        tempered = usual / limits.temperature
        token = draw(restrict(tempered, limits) if traits.restricts else tempered, request.keys, step)
    else:
        token = jnp.argmax(usual, axis=-1).astype(jnp.int32)
    logps, seen, rows = progress.logps, progress.seen, jnp.arange(token.shape[0])
    if traits.scores:
        logp = jax.nn.log_softmax(scores, axis=-1)[rows, token]
        logps = jax.lax.dynamic_update_slice(logps, logp[:, None], (0, step))
    if traits.penalises:
        seen = seen.at[rows, token].set(True)
    tokens = jax.lax.dynamic_update_slice(progress.tokens, token[:, None], (0, step))
    stopped = progress.stopped | jnp.isin(token, request.stop_ids)
    return Progress(step + 1, tokens, logps, stopped, seen, cache)
