"""The next token of each row from its scores: penalised, restricted, drawn. Order and meaning are transformers'."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Limits(NamedTuple):
    """Numbers of the sampling options; traced, so that other numbers need no other program."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]


def penalise(
    scores: Float[Array, "rows vocab"], seen: Bool[Array, "rows vocab"], penalty: Float[Array, ""]
) -> Float[Array, "rows vocab"]:
    """Scores of tokens seen before, in the prompt or since, made smaller: divided if positive, else multiplied.

    Source: Keskar et al. 2019 (arXiv:1909.05858).
    """
    return jnp.where(seen, jnp.where(scores > 0, scores / penalty, scores * penalty), scores)


def restrict(scores: Float[Array, "rows vocab"], limits: Limits) -> Float[Array, "rows vocab"]:
    """Scores with -inf for all but the likeliest tokens: the `top_k` of them, of those the fewest that hold `top_p` of
    the probability, of those the ones at least `min_p` times as likely as the likeliest. Ties at the edge stay.

    Source: top-p Holtzman et al. 2020 (arXiv:1904.09751), min-p Nguyen et al. 2024 (arXiv:2407.01082).
    """
    ordered = -jnp.sort(-scores, axis=-1)
    kept = jnp.arange(scores.shape[-1])[None] < limits.top_k
    share = jax.nn.softmax(jnp.where(kept, ordered, -jnp.inf), axis=-1)
    kept &= jnp.cumsum(share, axis=-1) - share < limits.top_p  # what lies before it
    kept &= share >= limits.min_p * share[:, :1]
    kept = kept.at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scores >= least, scores, -jnp.inf)


def draw(scores: Float[Array, "rows vocab"], keys: Array, step: Int[Array, ""]) -> Int[Array, "rows"]:
    """A token of each row by the Gumbel-max rule: argmax(scores + noise) is a draw from softmax(scores)."""
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, step), scores.shape[1:]))(keys)
    return jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)
