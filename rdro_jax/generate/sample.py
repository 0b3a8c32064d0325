"""Completions of prompts: what is asked for, checked, laid into rows, decoded, and cut where it stops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rdro_jax.errors import ConfigError
from rdro_jax.generate.choose import Limits
from rdro_jax.generate.decode import Request, Traits, extend, prefill
from rdro_jax.models import ModelConfig, Params

BUCKET = 64
"""What callers widen prompts to a multiple of, in tokens, so that few programs are compiled."""
STRIDE = 16
"""New tokens between two looks of the host at the text, where stop strings are asked for."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when generation ends; names and meanings are those of transformers."""

    max_new_tokens: int
    """Most tokens of a completion."""
    temperature: float = 0.0
    """0 takes the likeliest token; scores are divided by it before a draw."""
    top_k: int | None = None
    """Tokens a draw may choose from; None: all."""
    top_p: float = 1.0
    """Share of the probability a draw may choose from, likeliest tokens first."""
    min_p: float = 0.0
    """Least probability of a token a draw may choose, as a share of the likeliest one's."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the completion so far become less likely; 1: as likely as before."""
    n: int = 1
    """Completions per prompt."""

    def check(self) -> None:
        """Raise ConfigError for a number out of its range."""
        wanted = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            "top_k": (self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "a positive number"),
            "n": (self.n >= 1, "at least 1"),
        }
        for name, (fine, range_) in wanted.items():
            if not fine:
                raise ConfigError(f"generate: {name} is {getattr(self, name)}; wanted {range_}")
        if self.temperature == 0 and self.n > 1:
            raise ConfigError(
                f"generate: n is {self.n} at temperature 0, which gives {self.n} times the same; wanted 1"
            )


class Sampled(NamedTuple):
    """One completion."""

    tokens: list[int]
    """New tokens; a stop token is the last one. With a stop string, they end with the token that completed it."""
    logps: list[float]
    """Log-probability of each under the unmodified model, in nats."""


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

    `sample` is the same with more options and with log-probabilities.

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
    sampling = Sampling(max_new_tokens, temperature)
    return [done.tokens for done in sample(params, config, prompts, sampling, stop_ids=stop_ids, key=key, logps=False)]


def sample(
    params: Params,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    key: Array | None = None,
    logps: bool = True,
    bucket: int = 1,
) -> list[Sampled]:
    """`n` completions of each prompt, those of one prompt side by side.

    Token t of completion i is drawn with noise from `fold_in(fold_in(key, i), t)`: a function of the key, the
    completion's place and the token's place only, so that two models given the same key share their random numbers and
    differ by what they are. `stop_strings` are looked for in what `decode` makes of the new tokens. Prompts are widened
    to a multiple of `bucket` columns: calls of similar lengths then share one compiled program.

    Raises:
        ConfigError: a prompt is empty or holds an unknown token, or the sampling options contradict each other.
    """
    sampling.check()
    _check(prompts, config, sampling, stop_strings, decode, key)
    if not prompts:
        return []
    owner = [tuple(prompt) for prompt in prompts for _ in range(sampling.n)]
    place = {prompt: row for row, prompt in enumerate(dict.fromkeys(owner))}
    padded, first_slot = _flush_right(list(place), bucket)
    prompt_of = np.array([place[prompt] for prompt in owner], np.int32)
    request = Request(
        jnp.asarray(first_slot[prompt_of]),
        jnp.asarray(stop_ids, jnp.int32),
        _limits(sampling, config),
        None if key is None or sampling.temperature == 0 else _row_keys(key, len(owner)),
    )
    end_of = partial(_end, stop_ids=set(stop_ids), stop_strings=stop_strings, decode=decode)
    traits = _traits(sampling, logps)
    progress = prefill(params, config, jnp.asarray(padded), jnp.asarray(prompt_of), request, traits=traits)
    while True:
        step = int(progress.step)
        tokens = np.asarray(progress.tokens)[:, :step].tolist()
        ends = [end_of(row) for row in tokens]
        if step == sampling.max_new_tokens or None not in ends:
            break
        progress = progress._replace(stopped=jnp.array([end is not None for end in ends]))
        until = min(step + STRIDE, sampling.max_new_tokens) if stop_strings else sampling.max_new_tokens
        progress = extend(params, config, progress, until, request, traits=traits, length=padded.shape[1])
    scores = np.asarray(progress.logps).tolist()
    return [Sampled(row[:end], nats[:end]) for row, nats, end in zip(tokens, scores, ends, strict=True)]


def _row_keys(key: Array, rows: int) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))


def unpad(tokens: Int[np.ndarray, "rows seq"], mask: Bool[np.ndarray, "rows seq"]) -> list[list[int]]:
    """The prompts in an array padded on either side, `mask` true where a token is real: what `sample` takes."""
    return [np.asarray(row)[np.asarray(real, bool)].tolist() for row, real in zip(tokens, mask, strict=True)]


def _check(
    prompts: Sequence[Sequence[int]],
    config: ModelConfig,
    sampling: Sampling,
    stop_strings: Sequence[str],
    decode: Callable[[list[int]], str] | None,
    key: Array | None,
) -> None:
    if sampling.temperature > 0 and key is None:
        raise ConfigError(
            f"generate: temperature {sampling.temperature} draws at random; give a key (or temperature 0)"
        )
    if stop_strings and (decode is None or "" in stop_strings):
        raise ConfigError("generate: stop_strings want text that is not empty, and a decode function; give both")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(f"generate: prompt {index} is empty; wanted at least one token")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise ConfigError(f"generate: prompt {index} holds a token outside 0..{config.vocab_size - 1}")


def _traits(sampling: Sampling, logps: bool) -> Traits:
    return Traits(
        sampling.max_new_tokens,
        restricts=(sampling.top_k, sampling.top_p, sampling.min_p) != (None, 1.0, 0.0),
        penalises=sampling.repetition_penalty != 1.0,
        scores=logps,
    )


def _limits(sampling: Sampling, config: ModelConfig) -> Limits:
    return Limits(
        jnp.float32(sampling.temperature),
        jnp.int32(config.vocab_size if sampling.top_k is None else sampling.top_k),
        jnp.float32(sampling.top_p),
        jnp.float32(sampling.min_p),
        jnp.float32(sampling.repetition_penalty),
    )


def _flush_right(
    prompts: Sequence[Sequence[int]], bucket: int
) -> tuple[Int[np.ndarray, "rows seq"], Int[np.ndarray, "rows"]]:
    """Prompts flush right in one array, and the column each begins at: all rows then write the same cache slot."""
    longest = -(-max(len(prompt) for prompt in prompts) // bucket) * bucket
    padded = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    return padded, np.array([longest - len(prompt) for prompt in prompts], np.int32)


def _end(
    tokens: list[int], stop_ids: set[int], stop_strings: Sequence[str], decode: Callable[[list[int]], str] | None
) -> int | None:
    """How many of the tokens belong to the completion; None where nothing has stopped it yet."""
    end = next((at + 1 for at, token in enumerate(tokens) if token in stop_ids), None)
    if decode is None or not stop_strings:
        return end

    def holds_one(count: int | None) -> bool:
        text = decode(tokens[:count])
        return any(string in text for string in stop_strings)

    # Text only grows with the tokens: the shortest prefix that holds a stop string is the completion.
    return next(n for n in range(1, len(tokens) + 1) if holds_one(n)) if holds_one(end) else end
