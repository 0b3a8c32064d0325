"""Sentences sampled from a model, the judge's opinion of them, and what it says about two models together."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from rdro_jax.data.chat import encode, load_tokenizer, read_template, render_messages
from rdro_jax.generate import generate
from rdro_jax.models import load_model
from rdro_jax.quickstart.judge import score
from rdro_jax.quickstart.reviews import PROMPT


class Samples(NamedTuple):
    """Completions of one prompt by one model."""

    texts: list[str]
    scores: Float[np.ndarray, "samples"]
    """The judge's score of each, -1 to 1."""


class Shift(NamedTuple):
    """A mean difference of paired numbers, with its 95 % interval (normal approximation)."""

    mean: float
    low: float
    high: float


def sample(model: Path, *, count: int, max_new_tokens: int, seed: int) -> Samples:
    """`count` completions of the quickstart's prompt at temperature 1, judged.

    Sample i of two models uses the same random numbers when the seed is the same: the pair differs by the models only.
    """
    params, config = load_model(model)
    tokenizer = load_tokenizer(model)
    prompt = render_messages(PROMPT, tokenizer, read_template(tokenizer), add_generation_prompt=True)
    completions = generate(
        params,
        config,
        encode([prompt], tokenizer) * count,
        max_new_tokens=max_new_tokens,
        temperature=1.0,
        stop_ids=config.eos_token_ids,
        key=jax.random.key(seed),
    )
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in completions]
    return Samples(texts, np.array([score(PROMPT, text) for text in texts]))


def paired_shift(before: Float[np.ndarray, "samples"], after: Float[np.ndarray, "samples"]) -> Shift:
    """The mean of after - before over pairs, with its 95 % interval."""
    difference = after - before
    half = 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
    mean = difference.mean()
    return Shift(float(mean), float(mean - half), float(mean + half))


def distinct_share(texts: list[str]) -> float:
    """Share of the texts that are different from each other: far below 1, the model has collapsed onto a few."""
    return len(set(texts)) / len(texts)
