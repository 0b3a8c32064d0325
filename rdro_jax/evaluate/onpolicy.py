"""How far a policy has moved from its reference, on completions it writes itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from rdro_jax.data import Examples
from rdro_jax.evaluate.likelihood import Request, Scorer, load_scorer, score_tokens
from rdro_jax.generate import BUCKET, Sampling, sample
from rdro_jax.train.bootstrap import draw_prompts, drawn_together, interval

ROWS = 64
"""Completions drawn side by side, at the least those of one prompt."""


class Drawn(NamedTuple):
    """Completions of a policy, and what it and the reference say of them."""

    log_ratio: Float[np.ndarray, "completions"]
    """log policy - log reference, nats."""
    lengths: Int[np.ndarray, "completions"]
    """Tokens."""
    prompts: Int[np.ndarray, "completions"]
    """Equal for completions of one prompt."""


def on_policy(
    model: str | Path, *, reference: str | Path, examples: Examples, completions: int, max_new_tokens: int
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """`kl_figures` on `completions` per prompt of `examples`, drawn from the policy at temperature 1."""
    scorer = load_scorer(model)
    prompts = distinct_prompts(examples)
    drawn = draw_completions(scorer, prompts, completions=completions, max_new_tokens=max_new_tokens)
    policy = score_completions(scorer, drawn)
    del scorer  # policy and reference are not held at once
    log_ratio = policy - score_completions(load_scorer(reference), drawn)
    owner = np.repeat(np.arange(len(prompts)), completions)
    return kl_figures(Drawn(log_ratio, np.array([len(completion) for _, completion in drawn]), owner))


def distinct_prompts(examples: Examples) -> list[list[int]]:
    """Token ids of each prompt, once, as its rows have it."""
    assert examples.prompt_hashes is not None, "examples made without rows have no prompts to answer"
    _, first = np.unique(examples.prompt_hashes, return_index=True)
    starts = examples.offsets[first]
    ends = starts + examples.prompt_lengths[first]
    return [examples.tokens[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def draw_completions(
    scorer: Scorer, prompts: Sequence[Sequence[int]], *, completions: int, max_new_tokens: int, seed: int = 0
) -> list[Request]:
    """(prompt, completion) for `completions` per prompt, at temperature 1, the stop token included where one came."""
    sampling, drawn = Sampling(max_new_tokens, temperature=1.0, n=completions), []
    count = max(1, ROWS // completions)
    for start in range(0, len(prompts), count):
        part = prompts[start : start + count]
        key = jax.random.fold_in(jax.random.key(seed), start)
        stop = scorer.model.eos_token_ids
        done = sample(scorer.params, scorer.model, part, sampling, stop_ids=stop, key=key, logps=False, bucket=BUCKET)
        owners = [prompt for prompt in part for _ in range(completions)]
        drawn += [(prompt, one.tokens) for prompt, one in zip(owners, done, strict=True)]
    return drawn


def score_completions(scorer: Scorer, drawn: Sequence[Request]) -> Float[np.ndarray, "completions"]:
    """Log-probability of each completion after its prompt, in nats."""
    longest = max(len(prompt) + len(completion) for prompt, completion in drawn)
    return np.array([logps.sum(dtype=np.float64) for logps, _ in score_tokens(scorer, drawn, max_length=longest)])


def kl_figures(drawn: Drawn) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """KL(policy || reference) per completion and per token in nats, mean length in tokens; 95 % bootstrap intervals.

    The mean of log policy - log reference over the policy's own completions is unbiased. Of completions cut at
    `max_new_tokens` it is the divergence of so many tokens, which is at most that of the whole.
    """
    group = drawn_together(drawn.prompts, len(drawn.log_ratio))
    nats, tokens = (np.bincount(group, weights=values) for values in (drawn.log_ratio, drawn.lengths))
    members = np.bincount(group)
    times = np.concatenate([np.ones((1, len(members))), *draw_prompts(len(members))])
    ratios = {
        "on_policy/kl": (times @ nats) / (times @ members),
        "on_policy/kl_per_token": (times @ nats) / (times @ tokens),
        "on_policy/lengths": (times @ tokens) / (times @ members),
    }
    return (
        {name: float(values[0]) for name, values in ratios.items()},
        {name: interval(values[1:]) for name, values in ratios.items()},
    )
