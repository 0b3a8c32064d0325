"""Preferences that go round in a circle: no score explains them, and p+ is there all the same."""

from functools import partial

import numpy as np
from jaxtyping import Float64

from rdro_jax.losses import dpo, rdro
from rdro_jax.study.consistency import kto_at_its_kl
from rdro_jax.study.fit import ExampleLoss, fit_pairs, fit_policy
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import Shares, World, total_variation

DRAWN = np.array([0.5, 0.08, 0.09, 0.02, 0.31])
"""How often each completion is drawn into a pair; the two of a pair differ."""
STRONG, MILD = 0.95, 0.75
"""Chance that a completion loses to each of the two that follow it in the circle."""
SAMPLES = 20_000
BETAS = (0.1, 1.0, 4.42)
BETA_SCAN = np.geomspace(0.1, 20, 31)


def cyclic(options: Options) -> StudyReport:
    """T4: RDRO, KTO and DPO on pairs from a cyclic preference."""
    truth = pair_shares(STRONG)
    pairs = draw_pairs(np.random.default_rng(9), truth, options.seeds)
    rdro_errors = errors_of_labels(partial(rdro, alpha=0.5), truth, pairs)
    dpo_errors = {beta: errors_of_pairs(truth, pairs, beta) for beta in BETAS}
    strong, mild = scan_betas(truth), scan_betas(pair_shares(MILD, turned=True))
    return StudyReport(
        name="cyclic",
        claim="Preferences without a score: RDRO finds p+, DPO and KTO find something else",
        setting=f"5 completions drawn at {DRAWN.tolist()} for pairs of two different ones; each loses to the next two "
        f"of a circle with chance {STRONG}; {SAMPLES:,} completions in {SAMPLES // 2:,} pairs, reference = mixture, "
        f"{options.seeds} seeds: largest error of RDRO, smallest of the others",
        checks=(
            Check("RDRO: total variation to p+", rdro_errors.max(), below=0.015),
            *(Check(f"DPO, beta {beta:g}", errors.min(), above=0.04) for beta, errors in dpo_errors.items()),
            Check("KTO, beta 0.1", errors_of_labels(kto_at_its_kl, truth, pairs).min(), above=0.2),
            Check("DPO at its best beta, endless data", strong.min()),
            Check("DPO at its best beta in a mild cycle, endless data: do not overclaim", mild.min()),
        ),
        panels=(
            Panel(
                "DPO by beta, endless data",
                "beta",
                "total variation to p+",
                (
                    Curve("DPO", BETA_SCAN.tolist(), strong.tolist()),
                    Curve("DPO, mild cycle", BETA_SCAN.tolist(), mild.tolist()),
                    Curve(f"RDRO, {SAMPLES:,} completions", BETA_SCAN[[0, -1]].tolist(), [rdro_errors.mean()] * 2),
                ),
                x_scale="log",
                y_scale="log",
            ),
        ),
    )


def pair_shares(strength: float, *, turned: bool = False) -> Float64[np.ndarray, "chosen rejected"]:
    """Share of every (chosen, rejected) pair; if `turned`, completions beat the first that follows."""
    count = len(DRAWN)
    wins = np.zeros((count, count))
    for one in range(count):
        first, second = (one + 1) % count, (one + 2) % count
        wins[one, first] = strength if turned else 1 - strength
        wins[one, second] = 1 - strength
        wins[first, one], wins[second, one] = 1 - wins[one, first], 1 - wins[one, second]
    shares = np.outer(DRAWN, DRAWN) * wins
    return shares / shares.sum()


def world_of(truth: Float64[np.ndarray, "chosen rejected"]) -> World:
    """p+ of the chosen, p- of the rejected."""
    return World(truth.sum(1), truth.sum(0))


def draw_pairs(
    random: np.random.Generator, truth: Float64[np.ndarray, "chosen rejected"], seeds: int
) -> Float64[np.ndarray, "seeds chosen rejected"]:
    """Shares of pairs in one training set a seed."""
    counts = random.multinomial(SAMPLES // 2, truth.reshape(-1), size=seeds)
    return counts.reshape(seeds, *truth.shape) / (SAMPLES // 2)


def errors_of_labels(
    loss: ExampleLoss,
    truth: Float64[np.ndarray, "chosen rejected"],
    pairs: Float64[np.ndarray, "seeds chosen rejected"],
) -> Float64[np.ndarray, "seeds"]:
    """Total variation to p+ of an unpaired loss, which takes the pairs apart."""
    world = world_of(truth)
    reference = np.tile(world.mixture(0.5), (len(pairs), 1))
    return total_variation(fit_policy(loss, reference, Shares(pairs.sum(2) / 2, pairs.sum(1) / 2)), world.preferred)


def errors_of_pairs(
    truth: Float64[np.ndarray, "chosen rejected"],
    pairs: Float64[np.ndarray, "sets chosen rejected"],
    betas: float | Float64[np.ndarray, "sets"],
) -> Float64[np.ndarray, "sets"]:
    """Total variation to p+ of DPO on every training set, each with its beta."""
    world = world_of(truth)
    reference = np.tile(world.mixture(0.5), (len(pairs), 1))
    policies = fit_pairs(_dpo, reference, pairs, np.broadcast_to(betas, len(pairs)))
    return total_variation(policies, world.preferred)


def _dpo(chosen, rejected, reference_chosen, reference_rejected, beta):
    # beta only multiplies log-ratios: multiplied in beforehand it may differ from one training set to the next.
    return dpo(*(beta * logps for logps in (chosen, rejected, reference_chosen, reference_rejected)), beta=1.0)


def scan_betas(truth: Float64[np.ndarray, "chosen rejected"]) -> Float64[np.ndarray, "betas"]:
    """Total variation to p+ of DPO on endless data, by beta."""
    return errors_of_pairs(truth, np.tile(truth, (len(BETA_SCAN), 1, 1)), BETA_SCAN)
