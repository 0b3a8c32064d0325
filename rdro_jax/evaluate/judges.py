"""Which of two models answers better, by a judge that is a function: win rates with intervals, length-controlled."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rdro_jax.errors import ConfigError, RecordError
from rdro_jax.evaluate.outputs import read_objects
from rdro_jax.train.bootstrap import draw_prompts, interval

Judge = Callable[[Any, str], float]
"""score(prompt, completion): the higher the better. `rdro_jax.quickstart.judge:score` (VADER, sentiment) is one."""

RIDGE = 1e-2
"""Penalty of the logistic regression, half of it times the squared coefficients: finite even where one wins all."""
NEWTON_STEPS = 30


def load_judge(name: str) -> Judge:
    """The function named `module:function`, looked for in the working directory too. Raises: ConfigError."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ConfigError(f"--judge: got '{name}'; wanted module:function, for example rdro_jax.quickstart.judge:score")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--judge: {name}: {error}; wanted module:function that can be imported") from error


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], judge: Judge) -> dict[str, Any]:
    """How `first` does against `second`: rows of `instruction` and `output`, as AlpacaEval's, on the same instructions.

    `win_rate` counts ties half. `length_controlled_win_rate` is that at equal lengths, by a logistic regression of the
    outcome on tanh of the standardised difference of length in characters. Both with 95 % bootstrap intervals.

    Raises: RecordError where the instructions are not the same.
    Source: Dubois et al. 2024, length-controlled AlpacaEval (arXiv:2404.04475), its length term.
    """
    left, right = (_by_instruction(rows) for rows in (first, second))
    if left.keys() != right.keys():
        odd = next(iter(left.keys() ^ right.keys()))
        raise RecordError(f"instructions differ: '{odd[:80]}' is answered by one model only; wanted the same prompts")
    if not left:
        raise RecordError("no instruction is answered; wanted rows of instruction and output")
    scores = np.array([[judge(prompt, rows[prompt]) for rows in (left, right)] for prompt in left])
    lengths = np.array([[len(rows[prompt]) for rows in (left, right)] for prompt in left], float)
    outcome = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
    skew = length_terms(lengths[:, 0] - lengths[:, 1])
    drawn = np.concatenate(list(draw_prompts(len(outcome))))
    once = np.ones((1, len(outcome)))
    return {
        "prompts": len(outcome),
        "win_rate": float(outcome.mean()),
        "win_rate_interval": interval(drawn @ outcome / len(outcome)),
        "length_controlled_win_rate": float(controlled_rate(outcome, skew, once)[0]),
        "length_controlled_interval": interval(controlled_rate(outcome, skew, drawn)),
        "mean_scores": scores.mean(0).tolist(),
        "mean_lengths": lengths.mean(0).tolist(),
    }


def _by_instruction(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
            raise RecordError(f"row {number}: wanted the texts instruction and output")
        found[row["instruction"]] = row["output"]
    return found


def length_terms(difference: Float[np.ndarray, "prompts"]) -> Float[np.ndarray, "prompts"]:
    """tanh of the differences over their standard deviation; 0 where all lengths are equal."""
    spread = difference.std()
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def controlled_rate(
    outcome: Float[np.ndarray, "prompts"],
    skew: Float[np.ndarray, "prompts"],
    weight: Float[np.ndarray, "resamples prompts"],
) -> Float[np.ndarray, "resamples"]:
    """sigmoid(a) of the regression outcome ~ sigmoid(a + b skew), ridge-penalised, by Newton's method."""
    a, b = np.zeros(len(weight)), np.zeros(len(weight))
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(a[:, None] + b[:, None] * skew)))
        residual, curve = weight * (outcome - p), weight * p * (1 - p)
        g_a, g_b = residual.sum(1) - RIDGE * a, residual @ skew - RIDGE * b
        h_aa, h_ab, h_bb = curve.sum(1) + RIDGE, curve @ skew, curve @ skew**2 + RIDGE
        determinant = h_aa * h_bb - h_ab**2
        step_a, step_b = (h_bb * g_a - h_ab * g_b) / determinant, (h_aa * g_b - h_ab * g_a) / determinant
        # A step is at most 2: where one model wins almost always, a full one would overshoot.
        a, b = a + np.clip(step_a, -2, 2), b + np.clip(step_b, -2, 2)
    return 1 / (1 + np.exp(-a))


def compare_files(first: Path, second: Path, judge: Judge) -> dict[str, Any]:
    """`compare` of two files of AlpacaEval outputs."""
    return compare(list(read_objects(first)), list(read_objects(second)), judge)
