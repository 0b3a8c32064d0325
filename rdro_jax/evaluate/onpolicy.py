"""How far a policy and its reference are apart, both ways, on completions that each of them writes itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from rdro_jax.data import Examples
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate.likelihood import Request, Scorer, score_tokens
from rdro_jax.generate import BUCKET, Sampling, sample
from rdro_jax.train.bootstrap import draw_prompts, drawn_together, interval

ROWS = 64
"""Completions drawn side by side, at the least those of one prompt."""

Load = Callable[[], Scorer]
"""Reads a model, each time anew."""
Figures = tuple[dict[str, float], dict[str, tuple[float, float]]]
"""Figures by name, and 95 % intervals of them."""


class Drawn(NamedTuple):
    """Completions of a model, and what it and another one say of them."""

    log_ratio: Float[np.ndarray, "completions"]
    """log of the writer's probability - log of the other's, nats."""
    lengths: Int[np.ndarray, "completions"]
    """Tokens."""
    prompts: Int[np.ndarray, "completions"]
    """Equal for completions of one prompt."""


def kl_both_ways(
    policy: Load, reference: Load, examples: Examples, *, completions: int, max_new_tokens: int
) -> Figures:
    """`kl_figures` on `completions` per prompt of `examples`, drawn at temperature 1 by the policy (`on_policy/...`),
    and on as many drawn by the reference (`on_reference/...`).

    Both end with the policy's stop tokens, so that they are two distributions over the same completions. `policy` and
    `reference` load a model: one after the other, the policy twice, so that one model's memory is enough.

    Raises: ConfigError where one writes a token that the other does not have.
    """
    prompts = distinct_prompts(examples)
    scorer = policy()
    write = partial(
        draw_completions,
        prompts=prompts,
        completions=completions,
        max_new_tokens=max_new_tokens,
        stop_ids=scorer.model.eos_token_ids,
    )
    by_policy = write(scorer)
    of_policy = score_completions(scorer, by_policy)
    del scorer  # before the next is loaded
    scorer = reference()
    of_policy -= score_completions(scorer, by_policy)
    by_reference = write(scorer)
    of_reference = score_completions(scorer, by_reference)
    del scorer
    of_reference -= score_completions(policy(), by_reference)
    owner = np.repeat(np.arange(len(prompts)), completions)
    told = [
        kl_figures(Drawn(log_ratio, np.array([len(completion) for _, completion in requests]), owner), where)
        for log_ratio, requests, where in (
            (of_policy, by_policy, "on_policy"),
            (of_reference, by_reference, "on_reference"),
        )
    ]
    return told[0][0] | told[1][0], told[0][1] | told[1][1]


def distinct_prompts(examples: Examples) -> list[list[int]]:
    """Token ids of each prompt, once, as its rows have it."""
    assert examples.prompt_hashes is not None, "examples made without rows have no prompts to answer"
    _, first = np.unique(examples.prompt_hashes, return_index=True)
    starts = examples.offsets[first]
    ends = starts + examples.prompt_lengths[first]
    return [examples.tokens[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def draw_completions(
    scorer: Scorer,
    prompts: Sequence[Sequence[int]],
    *,
    completions: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seed: int = 0,
) -> list[Request]:
    """(prompt, completion) for `completions` per prompt, at temperature 1, the stop token included where one came."""
    sampling, drawn = Sampling(max_new_tokens, temperature=1.0, n=completions), []
    count = max(1, ROWS // completions)
    for start in range(0, len(prompts), count):
        part = prompts[start : start + count]
        key = jax.random.fold_in(jax.random.key(seed), start)
        how: Any = {"stop_ids": stop_ids, "key": key, "logps": False, "bucket": BUCKET}
        done = sample(scorer.params, scorer.model, part, sampling, **how)
        owners = [prompt for prompt in part for _ in range(completions)]
        drawn += [(prompt, one.tokens) for prompt, one in zip(owners, done, strict=True)]
    return drawn


def score_completions(scorer: Scorer, drawn: Sequence[Request]) -> Float[np.ndarray, "completions"]:
    """Log-probability of each completion after its prompt, in nats. Raises: ConfigError for an unknown token."""
    most, size = max(max(completion) for _, completion in drawn), scorer.model.vocab_size
    if most >= size:
        raise ConfigError(
            f"--completions: one model wrote token {most}, the other has {size} tokens; "
            "wanted policy and reference of one vocabulary"
        )
    longest = max(len(prompt) + len(completion) for prompt, completion in drawn)
    return np.array([logps.sum(dtype=np.float64) for logps, _ in score_tokens(scorer, drawn, max_length=longest)])


def kl_figures(drawn: Drawn, where: str) -> Figures:
    """KL(writer || other) per completion and per token in nats, mean length in tokens; 95 % bootstrap intervals.

    The mean of log writer - log other over the writer's own completions is unbiased. Of completions cut at
    `max_new_tokens` it is the divergence of so many tokens, which is at most that of the whole. The figures are
    `<where>/kl`, `<where>/kl_per_token` and `<where>/lengths`.
    """
    group = drawn_together(drawn.prompts, len(drawn.log_ratio))
    nats, tokens = (np.bincount(group, weights=values) for values in (drawn.log_ratio, drawn.lengths))
    members = np.bincount(group)
    times = np.concatenate([np.ones((1, len(members))), *draw_prompts(len(members))])
    ratios = {
        f"{where}/kl": (times @ nats) / (times @ members),
        f"{where}/kl_per_token": (times @ nats) / (times @ tokens),
        f"{where}/lengths": (times @ tokens) / (times @ members),
    }
    return (
        {name: float(values[0]) for name, values in ratios.items()},
        {name: interval(values[1:]) for name, values in ratios.items()},
    )
