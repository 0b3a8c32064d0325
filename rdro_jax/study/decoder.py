"""A tiny decoder aligned by the real packing, forward pass, losses and train step; its errors by enumeration."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from rdro_jax.batch import Batch
from rdro_jax.data import pack_batch, plan_rows, token_examples
from rdro_jax.losses import RDRO, SFT, LossBase, LossInputs, Weighted
from rdro_jax.models import ModelConfig, init_params
from rdro_jax.optim import OptimizerConfig, make_optimizer
from rdro_jax.study.report import Options
from rdro_jax.study.worlds import ALPHA, Shares, World, draw_counts, population, total_variation
from rdro_jax.train import completion_logps, init_state, make_train_step

PROMPT = 4
"""The one token of the prompt; it is never a completion's."""
MODEL = ModelConfig(
    "llama", vocab_size=8, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64, remat="none"
)
ROW, SLOTS = 64, 16
"""Tokens and examples of a packed row."""
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, max_grad_norm=1.0)
STEPS, FAST_STEPS = 1000, 600


@dataclass(frozen=True)
class PerToken(RDRO):
    """RDRO on log-ratios divided by the completion's length: the biased form."""

    def __call__(self, x: LossInputs) -> Weighted:
        """Return RDRO's values for mean log-probs."""
        lengths = jnp.maximum(x.lengths, 1)
        means = x._replace(policy_logps=x.policy_logps / lengths, reference_logps=x.reference_logps / lengths)
        return super().__call__(means)


class DecoderErrors(NamedTuple):
    """Total variations, means over trees."""

    setting: str
    reference: float
    """Of the reference to the mixture, after SFT on all completions."""
    summed: float
    """Of RDRO on sequence sums to p+, endless data."""
    normalised: float
    """The same with length-normalised ratios."""
    rdro: list[float]
    """Of RDRO on sequence sums to p+, by size of the training set."""
    sft: list[float]
    """Of SFT on the preferred completions of the same training sets."""


class Task(NamedTuple):
    """All completions, each with both labels, packed once; a training set is only its weights."""

    batch: Batch
    members: np.ndarray
    """[rows, slots]: completion number, plus the count of completions for the label "other"; -1 where empty."""


def align_decoders(
    trees: World,
    completions: Sequence[tuple[int, ...]],
    random: np.random.Generator,
    sizes: Sequence[int],
    options: Options,
) -> DecoderErrors:
    """Fit a reference to every tree's mixture, then RDRO and SFT from it, on endless data and on training sets."""
    task, steps = pack_task(completions), FAST_STEPS if options.fast else STEPS
    train = partial(align, task, steps=steps)
    endless = population(trees, ALPHA)
    count, rounds = len(trees.preferred), 1 + len(sizes)
    start = _repeat(jax.tree.map(lambda leaf: leaf[None], init_params(MODEL, jax.random.key(13))), count)
    reference = train(SFT(), start, endless)
    scores = _logps(reference, task.batch)
    sets = [endless, *(draw_counts(random, trees, ALPHA, size) for size in sizes)]
    shares = Shares(*(np.concatenate(part) for part in zip(*sets, strict=True)))
    start, scores, truth = _repeat(reference, rounds), _repeat(scores, rounds), trees.repeat(rounds).preferred

    def error(params: Any) -> Float64[np.ndarray, "rounds"]:
        return distance(probabilities(task, params), truth).reshape(rounds, count).mean(1)

    rdro = error(train(RDRO(alpha=ALPHA), start, shares, scores))
    sft = error(train(SFT(on="desirable"), start, shares)) if sizes else np.empty(1)
    normalised = train(PerToken(alpha=ALPHA), reference, endless, scores[:count])
    return DecoderErrors(
        setting=f"{count} trees, {MODEL.n_layers} layers of width {MODEL.d_model}, {steps} steps",
        reference=float(distance(probabilities(task, reference), trees.mixture(ALPHA)).mean()),
        summed=float(rdro[0]),
        normalised=float(distance(probabilities(task, normalised), trees.preferred).mean()),
        rdro=rdro[1:].tolist(),
        sft=sft[1:].tolist(),
    )


def _repeat(stacked: Any, times: int) -> Any:
    """[runs, ...] -> [times x runs, ...]: all of them, then again."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf] * times), stacked)


def pack_task(completions: Sequence[tuple[int, ...]]) -> Task:
    """Every completion twice, preferred and other, after the one prompt, in packed rows."""
    twice, preferred = [*completions] * 2, np.arange(2 * len(completions)) < len(completions)
    examples = token_examples([[PROMPT]] * len(twice), twice, preferred)
    order = np.arange(len(examples.lengths))
    rows = plan_rows(order, examples.lengths, max_length=ROW, slots=SLOTS, window=len(order))
    plan = np.full((len(rows), SLOTS), -1, np.int32)
    for number, row in enumerate(rows):
        plan[number, : len(row)] = row
    return Task(jax.tree.map(jnp.asarray, pack_batch(examples, plan, max_length=ROW)), plan)


def weights_of(task: Task, shares: Shares) -> Float[np.ndarray, "runs rows slots"]:
    """Weight of every slot in each training set; 0 where the slot is empty."""
    flat = np.concatenate([*shares, np.zeros((len(shares.preferred), 1))], axis=1)
    return flat[:, task.members].astype(np.float32)


def align(
    task: Task,
    loss: LossBase,
    params: Any,
    shares: Shares,
    reference_logps: Float[Array, "runs rows slots"] | None = None,
    *,
    steps: int,
) -> Any:
    """Parameters [runs, ...] after `steps` full-batch train steps, each run from its own start on its own set.

    Losses without a reference go without `reference_logps`.
    """
    optimizer = make_optimizer(OPTIMIZER, steps)
    step = make_train_step(_forward, loss, optimizer)
    weights = jnp.asarray(weights_of(task, shares))

    def run(params, weight, reference_logps):
        batch = task.batch._replace(weight=weight, reference_logps=reference_logps)
        advance = lambda state, _: (step(state, batch)[0], None)  # noqa: E731
        return jax.lax.scan(advance, init_state(params, loss, optimizer), length=steps)[0].params

    known = jnp.zeros_like(weights) if reference_logps is None else reference_logps
    return jax.jit(jax.vmap(run))(params, weights, known)


def _forward(params: Any, batch: Batch) -> Float[Array, "rows slots"]:
    return completion_logps(params, MODEL, batch)


_logps = jax.jit(jax.vmap(_forward, (0, None)))


def probabilities(task: Task, params: Any) -> Float64[np.ndarray, "runs completions"]:
    """Probability of every completion. They sum to less than 1: a decoder may also write what is none."""
    logps, filled = np.asarray(_logps(params, task.batch), np.float64), task.members >= 0
    found = np.empty((len(logps), task.members.max() + 1))
    found[:, task.members[filled]] = np.exp(logps[:, filled])
    return found[:, : found.shape[1] // 2]


def distance(
    policies: Float64[np.ndarray, "runs completions"], truth: Float64[np.ndarray, "runs completions"]
) -> Float64[np.ndarray, "runs"]:
    """Total variation, what the policy spends on other sequences included."""
    return total_variation(policies, truth) + (1 - policies.sum(-1)) / 2
