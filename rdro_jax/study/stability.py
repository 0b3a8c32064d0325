"""Plain stochastic gradient descent on classes that hardly overlap: which losses hold, which blow up."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from rdro_jax.losses import ddro, rdro
from rdro_jax.study.report import Check, Curve, Options, Panel, Scale, StudyReport
from rdro_jax.study.worlds import World, draw_distributions, softmax, total_variation

ALPHA = 0.5
OVERLAPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Share of each class that lies in the block of the other."""
BATCH_SIZE = 32
LEARNING_RATE = 0.5
FAST_OVERLAPS = (0.1, 0.03, 0.01)
STEPS, FAST_STEPS = 4000, 500
"""Where the classes overlap by 0.3 the ratio's optimum is 1.4, and DDRO needs thousands of steps to meet its pole; by
0.001, thousands to draw enough undesirable completions from where the preferred ones are."""
CLIP = 1.0
RUNS_PER_SEED = 2

Loss = Callable[[Float[Array, "batch"], Float[Array, "batch"], Bool[Array, "batch"]], Float[Array, "batch"]]
LOSSES: dict[str, tuple[Loss, float]] = {
    "rdro": (partial(rdro, alpha=ALPHA), np.inf),
    "ddro_plain": (partial(ddro, alpha=ALPHA, epsilon=0.0), np.inf),
    "ddro, epsilon 0.1, clip 1": (partial(ddro, alpha=ALPHA), CLIP),
}
"""Each loss with the norm its gradients are clipped to; infinity = not at all."""


class Descent(NamedTuple):
    """What became of runs [overlaps, runs]."""

    distance: Float[np.ndarray, "overlaps runs"]
    """Total variation to p+ at the end; NaN where the policy is."""
    failed: Bool[np.ndarray, "overlaps runs"]
    """Whether a loss or a gradient was not finite."""
    largest_norm: Float[np.ndarray, "overlaps runs"]
    """Of the gradient before clipping, while it was finite."""


def stability(options: Options) -> StudyReport:
    """T3: RDRO and DDRO by SGD without clipping, from large overlap of the classes to almost none."""
    runs = RUNS_PER_SEED * options.seeds
    overlaps, steps = (FAST_OVERLAPS, FAST_STEPS) if options.fast else (OVERLAPS, STEPS)
    worlds = draw_blocks(np.random.default_rng(10), overlaps, runs)
    descents = {name: descend(loss, clip, worlds, runs, steps) for name, (loss, clip) in LOSSES.items()}
    ours, plain, stabilised = descents.values()
    return StudyReport(
        name="stability",
        claim="RDRO's gradients are bounded; DDRO has a pole at r = 1 / alpha and runs into it",
        setting=f"two blocks of 10 completions, overlap {overlaps[0]:g} to {overlaps[-1]:g}, alpha = 1/2, "
        f"SGD {LEARNING_RATE}, batch {BATCH_SIZE}, {steps} steps in float32, {runs} seeds an overlap",
        checks=(
            Check("RDRO: largest gradient norm", ours.largest_norm.max(), below=0.5),
            Check("RDRO: largest total variation to p+", ours.distance.max(), below=0.06),
            Check("RDRO: runs that were not finite", ours.failed.sum(), below=1),
            *(
                Check(f"plain DDRO, overlap {overlap:g}: share of runs not finite", failed, above=0.79)
                for overlap, failed in zip(overlaps, plain.failed.mean(1), strict=True)
            ),
            Check("largest norm, plain DDRO over RDRO", plain.largest_norm.max() / ours.largest_norm.max(), above=10),
            Check("DDRO, epsilon 0.1, clip 1: largest gradient norm before clipping", stabilised.largest_norm.max()),
            Check("DDRO, epsilon 0.1, clip 1: largest total variation to p+", stabilised.distance.max()),
        ),
        panels=(
            _panel(
                "Runs that met a number that is not finite",
                "share of runs",
                overlaps,
                {name: descent.failed.mean(1) for name, descent in descents.items()},
            ),
            _panel(
                "Largest gradient norm while finite",
                "nats",
                overlaps,
                {name: descent.largest_norm.max(1) for name, descent in descents.items()},
                y_scale="log",
            ),
        ),
    )


def _panel(title: str, y_label: str, overlaps, values, y_scale: Scale = "linear") -> Panel:
    curves = tuple(Curve(name, overlaps, by_overlap.tolist()) for name, by_overlap in values.items())
    return Panel(title, "overlap of the classes", y_label, curves, x_scale="log", y_scale=y_scale)


def draw_blocks(random: np.random.Generator, overlaps: tuple[float, ...], runs: int) -> World:
    """Worlds [overlaps x runs]: p+ lies in the first block but for the overlap, p- in the second."""
    first, second = draw_distributions(random, (2, runs), 10)
    blocks = lambda share: np.concatenate([share * first, (1 - share) * second], axis=-1)  # noqa: E731
    preferred, other = ([blocks(share(overlap)) for overlap in overlaps] for share in (lambda o: 1 - o, lambda o: o))
    return World(np.concatenate(preferred), np.concatenate(other))


def descend(loss: Loss, clip: float, worlds: World, runs: int, steps: int) -> Descent:
    """Descend in every world from the reference, in float32; run `i` of every overlap draws with seed `i`."""

    def objective(logits, reference, completions, desirable):
        policy = jax.nn.log_softmax(logits)
        return jnp.mean(loss(policy[completions], reference[completions], desirable))

    def run(preferred, other, reference, key):
        def step(carry, key):
            logits, failed, largest = carry
            completions, desirable = draw_batch(key, preferred, other)
            value, slope = jax.value_and_grad(objective)(logits, reference, completions, desirable)
            norm = jnp.linalg.norm(slope)
            failed |= ~(jnp.isfinite(value) & jnp.isfinite(norm))
            largest = jnp.where(failed, largest, jnp.maximum(largest, norm))
            slope *= jnp.minimum(1.0, clip / norm)
            return (logits - LEARNING_RATE * slope, failed, largest), None

        start = (reference, jnp.zeros((), bool), jnp.zeros(()))
        return jax.lax.scan(step, start, jax.random.split(key, steps))[0]

    reference = worlds.mixture(ALPHA)
    keys = jnp.tile(jax.random.split(jax.random.key(11), runs), len(reference) // runs)
    float32 = (jnp.asarray(np.log(p), jnp.float32) for p in (*worlds, reference))
    logits, failed, largest = map(np.asarray, jax.jit(jax.vmap(run))(*float32, keys))
    distance = total_variation(softmax(logits.astype(np.float64)), worlds.preferred)
    return Descent(*(x.reshape(-1, runs) for x in (distance, failed, largest)))


def draw_batch(
    key: Key[Array, ""], preferred: Float[Array, "outcomes"], other: Float[Array, "outcomes"]
) -> tuple[Array, Bool[Array, "batch"]]:
    """Completions and labels of one batch; `preferred` and `other` are log-probabilities."""
    for_labels, for_completions = jax.random.split(key)
    desirable = jax.random.bernoulli(for_labels, ALPHA, (BATCH_SIZE,))
    return jax.random.categorical(for_completions, jnp.where(desirable[:, None], preferred, other)), desirable
