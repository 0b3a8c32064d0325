"""Which losses find p+ as the data grow, how fast, and how many samples RDRO saves against likelihood alone."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64

from rdro_jax.errors import ConfigError
from rdro_jax.losses import ddro, dpo, kto, rdro, sft
from rdro_jax.study.fit import ExampleLoss, fit_pairs, fit_policy
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import ALPHA, World, draw_counts, draw_worlds, slope, total_variation

WORLDS_PER_SEED = 8
SIZES = 200 * 2 ** np.arange(11)
"""Training sets of 200 to 204,800 completions."""


def sft_on_preferred(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
) -> Float[Array, "examples"]:
    """SFT on the preferred completions alone; a completion is one token here."""
    return jnp.where(desirable, sft(policy_logps, jnp.ones(policy_logps.shape, int)), 0.0)


def kto_at_its_kl(
    policy_logps: Float[Array, "examples"],
    reference_logps: Float[Array, "examples"],
    desirable: Bool[Array, "examples"],
) -> Float[Array, "examples"]:
    """KTO with the KL it would measure: with one prompt, mismatched completions are drawn from the reference.

    Their mean s is -KL(reference || policy), not above 0, hence z0 = 0.
    """
    return kto(policy_logps, reference_logps, desirable, 0.0)


UNPAIRED: dict[str, ExampleLoss] = {
    "rdro": partial(rdro, alpha=ALPHA),
    "ddro": partial(ddro, alpha=0.5, sampling_alpha=ALPHA),
    "ddro_plain": partial(ddro, alpha=0.5, epsilon=0.0, sampling_alpha=ALPHA),
    "sft": sft_on_preferred,
    "kto": kto_at_its_kl,
}
"""Losses of labelled completions; DDRO as published, with alpha = 1/2, whatever the rate of the data."""
LOSSES = (*UNPAIRED, "dpo")


def consistency(options: Options) -> StudyReport:
    """T1: total variation to p+ against the size of the training set, alpha = 0.39, reference = mixture."""
    random = np.random.default_rng(1)
    worlds = draw_worlds(random, WORLDS_PER_SEED * options.seeds)
    sizes = SIZES[::3] if options.fast else SIZES
    names = options.losses or LOSSES
    curves = {name: _distances(name, worlds, sizes, np.random.default_rng(2)) for name in names}
    return StudyReport(
        name="consistency",
        claim="RDRO finds p+ at the rate of statistics; losses that assume something else settle elsewhere",
        setting=f"{len(worlds.preferred)} worlds of 20 completions, alpha = {ALPHA}, reference = mixture; every loss "
        "minimised to the end, mean total variation to p+",
        checks=tuple(check for name in names for check in _checks(name, sizes, curves[name])),
        panels=(
            Panel(
                "Learnt policy against the truth",
                "training completions",
                "total variation to p+",
                tuple(Curve(name, sizes.tolist(), curves[name].tolist()) for name in names),
                x_scale="log",
                y_scale="log",
            ),
        ),
    )


def check_losses(names: tuple[str, ...]) -> None:
    """Raises: ConfigError for a loss the study does not know."""
    unknown = [name for name in names if name not in LOSSES]
    if unknown:
        raise ConfigError(f"--losses: got {unknown[0]!r}; wanted some of {', '.join(LOSSES)}")


def _distances(
    name: str, worlds: World, sizes: np.ndarray, random: np.random.Generator
) -> Float64[np.ndarray, "sizes"]:
    repeated = worlds.repeat(len(sizes))
    each = np.repeat(sizes, len(worlds.preferred))
    reference = repeated.mixture(ALPHA)
    if name == "dpo":
        policies = fit_pairs(dpo, reference, draw_pairs(random, repeated, each // 2))
    else:
        policies = fit_policy(UNPAIRED[name], reference, draw_counts(random, repeated, ALPHA, each))
    return total_variation(policies, repeated.preferred).reshape(len(sizes), -1).mean(1)


def draw_pairs(
    random: np.random.Generator, worlds: World, counts: np.ndarray
) -> Float64[np.ndarray, "worlds chosen rejected"]:
    """Shares of pairs in training sets of `counts` pairs: chosen drawn from p+, rejected from p-, independently."""
    joint = worlds.preferred[:, :, None] * worlds.other[:, None, :]
    flat = joint.reshape(len(joint), -1)
    return (random.multinomial(counts, flat) / counts[:, None]).reshape(joint.shape)


def _checks(name: str, sizes: np.ndarray, distances: np.ndarray) -> tuple[Check, ...]:
    rate, last = slope(sizes, distances), float(distances[-1])
    at = f"total variation at {sizes[-1]:,}"
    match name:
        case "rdro":
            return Check("rdro: slope", rate, -0.62, -0.38), Check(f"rdro: {at}", last)
        case "ddro_plain":
            return (Check(f"ddro_plain, alpha 1/2: {at}", last, 0.06, 0.12),)
        case "ddro":
            return (Check(f"ddro (epsilon 0.1), alpha 1/2: {at}", last, 0.06),)
        case "sft":
            return Check("sft on preferred: slope", rate), Check(f"sft on preferred: {at}", last)
    return (Check(f"{name}: {at}", last),)


def sft_gap(options: Options) -> StudyReport:
    """T2: how much nearer to p+ RDRO comes than SFT on the preferred completions of the same training set."""
    size, random = 12_800, np.random.default_rng(3)
    worlds = draw_worlds(random, WORLDS_PER_SEED * options.seeds)
    training = draw_counts(random, worlds, ALPHA, size)
    errors = {
        name: total_variation(fit_policy(UNPAIRED[name], worlds.mixture(ALPHA), training), worlds.preferred)
        for name in ("rdro", "sft")
    }
    ratio = float(errors["rdro"].mean() / errors["sft"].mean())
    theory = expected_gap(worlds)
    order = np.argsort(errors["sft"])
    return StudyReport(
        name="sft_gap",
        claim="The other completions are worth samples: RDRO's error is about 0.6 of SFT's",
        setting=f"{len(order)} worlds of 20 completions, {size:,} training completions, alpha = {ALPHA}",
        checks=(
            Check("total variation, RDRO", float(errors["rdro"].mean())),
            Check("total variation, SFT on preferred", float(errors["sft"].mean())),
            Check("their ratio", ratio, below=0.85),
            Check("theory: sum sqrt(p (1 - eta)) / sum sqrt(p)", theory),
            Check("distance of the ratio from theory", abs(ratio - theory), below=0.10),
        ),
        panels=(
            Panel(
                "Error in every world",
                "world, by the error of SFT",
                "total variation to p+",
                tuple(Curve(name, list(range(len(order))), errors[name][order].tolist()) for name in errors),
            ),
        ),
    )


def expected_gap(worlds: World) -> float:
    """What the ratio of the two errors tends to: sum sqrt(p+ (1 - eta)) / sum sqrt(p+), eta = P(+ | y)."""
    eta = ALPHA * worlds.preferred / worlds.mixture(ALPHA)
    return float(np.sqrt(worlds.preferred * (1 - eta)).sum() / np.sqrt(worlds.preferred).sum())
