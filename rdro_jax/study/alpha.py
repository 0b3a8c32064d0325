"""What alpha does: a wrong one, an estimated one, and one that varies with the prompt."""

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from rdro_jax.losses import diagnostics, rdro
from rdro_jax.study.consistency import sft_on_preferred
from rdro_jax.study.fit import fit_policy
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import ALPHA, Shares, World, draw_counts, draw_worlds, population, total_variation

ALPHAS = (0.2, 0.3, ALPHA, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OFF = (0.2, 0.6, 0.8, 1.0)
"""Wrong values whose error has a figure to reach."""
SAMPLES = 20_000
PROMPTS = 10
SMALLEST_RATE = 0.05
"""Floor of a prompt's estimated alpha, whose logarithm is taken."""


def alpha(options: Options) -> StudyReport:
    """T5: the loss is told an alpha that is not that of the data and the reference."""
    worlds = draw_worlds(np.random.default_rng(6), 8 * options.seeds)
    repeated = worlds.repeat(len(ALPHAS))
    told = np.repeat(np.array(ALPHAS), len(worlds.preferred))
    policies = fit_policy(_told_alpha, repeated.mixture(ALPHA), population(repeated, ALPHA), told)
    by_alpha = lambda values: values.reshape(len(ALPHAS), -1).mean(1)  # noqa: E731
    distance = by_alpha(total_variation(policies, repeated.preferred))
    divergence = by_alpha((policies * np.log(policies / repeated.mixture(ALPHA))).sum(-1))
    wrong = {value: float(distance[ALPHAS.index(value)]) for value in OFF}
    return StudyReport(
        name="alpha",
        claim="alpha is a strength knob: lower overshoots p+, 1 stays at the reference",
        setting=f"{len(worlds.preferred)} worlds, data and reference at {ALPHA}, population; classes re-weighted to "
        "the alpha the loss is told, as `sampling_alpha` does in a run",
        checks=(
            Check(f"total variation to p+ at {ALPHA}", float(distance[ALPHAS.index(ALPHA)]), below=1e-3),
            *(Check(f"total variation to p+ at {value:g}", tv, above=0.03) for value, tv in wrong.items()),
            Check("largest step of KL(policy || reference) as alpha rises, nats", np.diff(divergence).max(), below=0.0),
        ),
        panels=(
            Panel(
                f"A wrong alpha (the data's is {ALPHA})",
                "alpha told to the loss",
                "total variation / nats",
                (
                    Curve("total variation to p+", ALPHAS, distance.tolist()),
                    Curve("KL(policy || reference), nats", ALPHAS, divergence.tolist()),
                ),
            ),
        ),
    )


def _told_alpha(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
    told: Float[Array, ""],
) -> Float[Array, "examples"]:
    return rdro(policy_logps, reference_logps, desirable, alpha=told, sampling_alpha=ALPHA)


def alpha_hat(options: Options) -> StudyReport:
    """T9: alpha read off a trained policy and held-out completions."""
    random = np.random.default_rng(7)
    worlds = draw_worlds(random, 4 * options.seeds)
    reference = worlds.mixture(ALPHA)
    policies = fit_policy(partial(rdro, alpha=ALPHA), reference, draw_counts(random, worlds, ALPHA, SAMPLES))
    heldout = draw_counts(random, worlds, ALPHA, SAMPLES)
    estimates = estimate_alpha(np.log(policies / reference), heldout)
    return StudyReport(
        name="alpha_hat",
        claim="alpha can be read off a trained policy: (1 - m-) / (m+ - m-), m the held-out class means of r",
        setting=f"{len(estimates)} worlds, {SAMPLES:,} training and {SAMPLES:,} held-out completions, alpha = {ALPHA}",
        checks=(
            Check("mean of the estimates", float(estimates.mean()), ALPHA - 0.03, ALPHA + 0.03),
            Check("their standard deviation", float(estimates.std(ddof=1))),
        ),
        panels=(
            Panel(
                "Estimates",
                "world, in order",
                "alpha",
                (
                    Curve("estimate", list(range(len(estimates))), np.sort(estimates).tolist()),
                    Curve("truth", [0, len(estimates) - 1], [ALPHA, ALPHA]),
                ),
            ),
        ),
    )


def estimate_alpha(log_ratio: Float64[np.ndarray, "worlds outcomes"], heldout: Shares) -> Float64[np.ndarray, "worlds"]:
    """`losses.diagnostics.alpha_hat` of every world's held-out completions."""
    outcomes = log_ratio.shape[-1]
    desirable = np.arange(2 * outcomes) < outcomes
    with jax.enable_x64(True):
        estimate = jax.vmap(lambda s, weight: diagnostics.alpha_hat(s, jax.numpy.asarray(desirable), weight))
        return np.asarray(estimate(np.tile(log_ratio, 2), np.concatenate(heldout, axis=-1)))


def prompt_alpha(options: Options) -> StudyReport:
    """T10: preferred rates that vary with the prompt, RDRO told one alpha, each prompt's own, and SFT."""
    random = np.random.default_rng(8)
    worlds = draw_worlds(random, PROMPTS * options.seeds)
    rates = random.uniform(0.05, 0.95, len(worlds.preferred))
    reference = worlds.mixture(rates[:, None])
    completions = random.multinomial(SAMPLES, np.full(PROMPTS, 1 / PROMPTS), size=options.seeds).reshape(-1)
    training = draw_counts(random, worlds, rates, completions)
    overall = _overall_rate(training, completions, options.seeds)
    own = np.clip(training.preferred.sum(-1), SMALLEST_RATE, 1 - SMALLEST_RATE)
    distance = {
        "own alpha, offset": _prompt_distance(_offset, reference, training, worlds, overall, own),
        "own alpha, weight": _prompt_distance(_weight, reference, training, worlds, overall, own),
        "one alpha": _prompt_distance(_one_alpha, reference, training, worlds, overall),
        "SFT on preferred": _prompt_distance(sft_on_preferred, reference, training, worlds),
        "reference": total_variation(reference, worlds.preferred),
    }
    means = {name: float(values.mean()) for name, values in distance.items()}
    order = np.argsort(rates)
    return StudyReport(
        name="prompt_alpha",
        claim="Where the preferred rate varies with the prompt, RDRO needs each prompt's own alpha",
        setting=f"{options.seeds} x {PROMPTS} prompts, alpha(x) ~ U(0.05, 0.95), {SAMPLES:,} completions over the "
        "prompts of a seed; each prompt's alpha is its rate in the training set",
        checks=(
            Check("own alpha as offset: mean total variation to p+", means["own alpha, offset"], below=0.06),
            Check("its share of that with one alpha", means["own alpha, offset"] / means["one alpha"], below=0.5),
            *(Check(f"{name}: mean total variation to p+", means[name]) for name in list(means)[1:]),
        ),
        panels=(
            Panel(
                "Error by prompt",
                "alpha of the prompt",
                "total variation to p+",
                tuple(Curve(name, rates[order].tolist(), values[order].tolist()) for name, values in distance.items()),
            ),
        ),
    )


def _overall_rate(training: Shares, completions: np.ndarray, seeds: int) -> Float64[np.ndarray, "worlds"]:
    """The preferred rate over all prompts of a seed, for each of its prompts."""
    preferred = (training.preferred.sum(-1) * completions).reshape(seeds, PROMPTS).sum(1)
    return np.repeat(preferred / SAMPLES, PROMPTS)


def _prompt_distance(loss, reference, training: Shares, worlds: World, *extras) -> Float64[np.ndarray, "worlds"]:
    return total_variation(fit_policy(loss, reference, training, *extras), worlds.preferred)


def _one_alpha(policy_logps, reference_logps, desirable, overall):
    return rdro(policy_logps, reference_logps, desirable, alpha=overall)


def _offset(policy_logps, reference_logps, desirable, overall, own):
    each = jax.numpy.full(policy_logps.shape, own)
    return rdro(policy_logps, reference_logps, desirable, alpha=overall, prompt_alpha=each)


def _weight(policy_logps, reference_logps, desirable, overall, own):
    each = jax.numpy.full(policy_logps.shape, own)
    return rdro(policy_logps, reference_logps, desirable, alpha=overall, prompt_alpha=each, prompt_alpha_form="weight")
