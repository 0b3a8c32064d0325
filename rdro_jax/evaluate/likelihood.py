"""Log-probabilities of continuations after contexts, token ids in, for harnesses that ask by the request."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdro_jax.errors import ConfigError
from rdro_jax.generate.load import load_spread
from rdro_jax.models import ModelConfig, Params, forward, output_embedding
from rdro_jax.parallel import make_constrain, rows_sharding

ROWS_PER_DEVICE = 4
BUCKET = 64
"""Rows are widened to a power of two times so many tokens: few programs, little padding."""
CHUNK = 128
"""Tokens whose logits exist at a time."""


class Scorer(NamedTuple):
    """A model laid over the devices."""

    params: Params
    model: ModelConfig
    mesh: jax.sharding.Mesh


class Likelihood(NamedTuple):
    """What a model says of a continuation."""

    logp: float
    """Nats, summed over its tokens."""
    greedy: bool
    """Whether each of its tokens is the likeliest."""


def load_scorer(folder: str | Path) -> Scorer:
    """The model of a Hugging Face folder in float32, sharded over all devices (`generate.load.load_spread`).

    Raises: WeightError, ConfigError in a job of several processes, none of which would have all the scores.
    """
    check_alone()
    return Scorer(*load_spread(folder))


def check_alone() -> None:
    """Raise ConfigError in a job of several processes."""
    if jax.process_count() > 1:
        raise ConfigError(f"rdro eval: got {jax.process_count()} processes; samples and completions want a single one")


Request = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""


def score_continuations(scorer: Scorer, requests: Sequence[Request], *, max_length: int) -> list[Likelihood]:
    """What the model says of each (context, continuation); of one longer than `max_length` + 1 the end is kept."""
    found = score_tokens(scorer, requests, max_length=max_length)
    return [Likelihood(float(logps.sum(dtype=np.float64)), bool(greedy.all())) for logps, greedy in found]


def score_tokens(
    scorer: Scorer, requests: Sequence[Request], *, max_length: int
) -> list[tuple[Float[np.ndarray, "continuation"], Bool[np.ndarray, "continuation"]]]:
    """Of each token of each continuation its log-probability in nats, and whether it is the likeliest."""
    rows = [([*context, *continuation][-(max_length + 1) :], len(continuation)) for context, continuation in requests]
    found: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    count = ROWS_PER_DEVICE * scorer.mesh.size
    for start in range(0, len(order), count):
        members = order[start : start + count]
        tokens, scored = _lay([rows[index] for index in members], count)
        logps, greedy = (np.asarray(part) for part in _score(scorer.params, tokens, scorer.model, scorer.mesh))
        for row, index in enumerate(members):
            found[index] = logps[row, scored[row]], greedy[row, scored[row]]
    return found


def _lay(
    rows: Sequence[tuple[Sequence[int], int]], count: int
) -> tuple[Int[np.ndarray, "rows seq"], Bool[np.ndarray, "rows seq"]]:
    """Tokens flush left, and where the *next* token is one to score; rows beyond those given are empty."""
    longest = max(len(tokens) for tokens, _ in rows)
    width = BUCKET
    while width < longest:
        width *= 2
    tokens, scored = np.zeros((count, width), np.int32), np.zeros((count, width), bool)
    for row, (ids, length) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        scored[row, max(0, len(ids) - length - 1) : len(ids) - 1] = True
    return tokens, scored


@partial(jax.jit, static_argnames=("model", "mesh"))
def _score(
    params: Params, tokens: Int[Array, "rows seq"], model: ModelConfig, mesh: Any
) -> tuple[Float[Array, "rows seq"], Bool[Array, "rows seq"]]:
    tokens = jax.lax.with_sharding_constraint(tokens, rows_sharding(mesh))
    hidden = forward(params, model, tokens, constrain=make_constrain(mesh))
    head = output_embedding(params, model)

    def one(position):
        h, target = position
        logits = jnp.einsum("d,vd->v", h, head.astype(h.dtype), preferred_element_type=jnp.float32)
        return logits[target] - jax.nn.logsumexp(logits), jnp.argmax(logits) == target

    targets = jnp.roll(tokens, -1, axis=1)
    logps, greedy = jax.lax.map(one, (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)), batch_size=CHUNK)
    return logps.reshape(tokens.shape), greedy.reshape(tokens.shape)
