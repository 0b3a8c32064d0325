"""Losses at log-ratios no sane policy has: finite in value and gradient, in float32."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rdro_jax.losses import apo_zero_unpaired, bco, ddro, dpo, kto, rdro
from rdro_jax.losses.dpo import Kind
from rdro_jax.losses.rdro import Estimator, Generator
from rdro_jax.study.report import Check, Curve, Options, Panel, StudyReport
from rdro_jax.study.worlds import ALPHA

MAGNITUDES = (0.0, 20.0, 89.0, 300.0, 800.0, 1e4)
LOG_RATIOS = np.unique([sign * s for s in MAGNITUDES for sign in (-1.0, 1.0)]).astype(np.float32)
"""Nats. float32's exp overflows at 88.7 and underflows at -103; float64's at 709."""
FINE = np.linspace(-12, 12, 241, dtype=np.float32)
"""Where the coefficients of the logistic form are looked at closely."""

OfLogRatio = Callable[[Float[Array, "examples"]], Float[Array, "examples"]]


def unpaired_losses() -> dict[str, Callable[..., Any]]:
    """Every loss of labelled completions that reads a log-ratio, by name."""
    ratio = {
        f"rdro {generator} {estimator}": partial(
            rdro,
            alpha=ALPHA,
            generator=generator,
            estimator=estimator,
            exponent=0.5 if generator == "power" else None,
        )
        for generator in get_args(Generator)
        for estimator in get_args(Estimator)
    }
    return ratio | {
        "ddro": ddro,
        "kto": partial(kto, kl=1.0),
        "apo_zero_unpaired": apo_zero_unpaired,
        "bco": partial(bco, delta=0.5),
    }


def of_log_ratio() -> dict[str, OfLogRatio]:
    """Every loss as a function of one log-ratio: of each label, or of each member of a pair."""
    functions: dict[str, OfLogRatio] = {}
    for name, loss in unpaired_losses().items():
        for label in (True, False):
            functions[f"{name} {'preferred' if label else 'other'}"] = partial(_labelled, loss, label)
    for kind in get_args(Kind):
        lengths = {"chosen_lengths": jnp.array([7]), "rejected_lengths": jnp.array([5])} if kind == "ipo" else {}
        functions[f"dpo {kind} chosen"] = partial(_chosen, partial(dpo, kind=kind, **lengths))
        functions[f"dpo {kind} rejected"] = partial(_rejected, partial(dpo, kind=kind, **lengths))
    return functions


def _labelled(loss, label, s):
    return loss(s, jnp.zeros_like(s), jnp.full(s.shape, label))


def _chosen(loss, s):
    zero = jnp.zeros_like(s)
    return loss(s, zero, zero, zero)


def _rejected(loss, s):
    zero = jnp.zeros_like(s)
    return loss(zero, s, zero, zero)


def coefficient(loss: OfLogRatio, log_ratios: Float[np.ndarray, "examples"]) -> Float[np.ndarray, "examples"]:
    """Derivative of a loss at each log-ratio by itself, float32."""
    alone = jax.vmap(jax.grad(lambda s: loss(s[None])[0]))
    with jax.enable_x64(False):
        return np.asarray(jax.jit(alone)(log_ratios))


def not_finite(loss: OfLogRatio) -> int:
    """How many values and derivatives at the extreme log-ratios are not finite."""
    with jax.enable_x64(False):
        values = np.asarray(jax.jit(jax.vmap(lambda s: loss(s[None])[0]))(LOG_RATIOS))
    return int((~np.isfinite(values)).sum() + (~np.isfinite(coefficient(loss, LOG_RATIOS))).sum())


def numerics(options: Options) -> StudyReport:
    """T8: values and gradients at extreme log-ratios, and the bounds of the logistic coefficients."""
    functions = of_log_ratio()
    broken = {name: count for name, loss in functions.items() if (count := not_finite(loss))}
    terms = partial(rdro, alpha=ALPHA, estimator="batch_mean")
    grid = np.unique(np.concatenate([FINE, LOG_RATIOS]))
    preferred = coefficient(partial(_labelled, terms, True), grid)
    other = coefficient(partial(_labelled, terms, False), grid)
    plain = sum(not_finite(partial(_labelled, partial(ddro, epsilon=0.0), label)) for label in (True, False))
    near, rounding = np.abs(grid) <= 12, 1e-6
    return StudyReport(
        name="numerics",
        claim="Values and gradients stay finite at any log-ratio, and RDRO's coefficients stay bounded",
        setting=f"{len(functions)} functions of one log-ratio, float32, s in {LOG_RATIOS.astype(int).tolist()} nats; "
        f"coefficients of the logistic class terms at alpha = {ALPHA}",
        checks=(
            Check(f"values and gradients not finite ({', '.join(broken) or 'none'})", sum(broken.values()), below=1),
            Check("preferred: smallest coefficient (bound -1)", preferred.min(), above=-1 - rounding),
            Check("preferred: largest coefficient (bound alpha)", preferred.max(), below=ALPHA + rounding),
            Check("other: smallest coefficient (bound 0)", other.min(), above=-rounding),
            Check("other: largest coefficient (bound 1 - alpha)", other.max(), below=1 - ALPHA + rounding),
            Check("plain DDRO: values and gradients not finite", plain),
        ),
        panels=(
            Panel(
                f"Coefficients on s, alpha = {ALPHA}",
                "log-ratio s, nats",
                "derivative of the loss",
                (
                    Curve("preferred", grid[near].tolist(), preferred[near].tolist()),
                    Curve("other", grid[near].tolist(), other[near].tolist()),
                ),
            ),
        ),
    )
