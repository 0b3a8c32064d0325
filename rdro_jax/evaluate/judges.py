"""Which of two models answers better, by a judge that is a function: win rates with intervals, length-controlled."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

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


Rows = Sequence[Mapping[str, Any]]
"""Objects of `instruction` and `output`, as AlpacaEval's."""


def compare(first: Rows, second: Rows, judge: Judge, others: Sequence[Rows] = ()) -> dict[str, Any]:
    """How `first` does against `second` on the same instructions.

    `win_rate` counts ties half. `length_controlled_win_rate` is that at equal lengths: the mean of sigmoid(a + c g)
    over prompts, from the regression outcome ~ sigmoid(a + b tanh(d / sd(d)) + c g) with d the difference of length in
    characters and g how easy the prompt is to win, which `instruction_ease` finds in how `others` did against
    `second`; without `others` there is no c. Both with 95 % bootstrap intervals, to which g is known.

    Raises: RecordError where the instructions are not the same, ConfigError where the judge gives no number.
    Source: Dubois et al. 2024, length-controlled AlpacaEval (arXiv:2404.04475). Differs from it in where g comes from
    and in the penalty, which is a fixed ridge.
    """
    base = _by_instruction(second)
    found = _contest(_by_instruction(first), base, judge)
    known = [_contest(_by_instruction(rows), base, judge) for rows in others]
    ease = [instruction_ease([one.outcome for one in known], [one.skew for one in known])] if known else []
    features = np.stack([found.skew, *ease], axis=1)
    drawn = np.concatenate(list(draw_prompts(len(found.outcome))))
    once = np.ones((1, len(found.outcome)))
    return {
        "prompts": len(found.outcome),
        "win_rate": float(found.outcome.mean()),
        "win_rate_interval": interval(drawn @ found.outcome / len(found.outcome)),
        "length_controlled_win_rate": float(controlled_rate(found.outcome, features, once)[0]),
        "length_controlled_interval": interval(controlled_rate(found.outcome, features, drawn)),
        "mean_scores": found.scores.mean(0).tolist(),
        "mean_lengths": found.lengths.mean(0).tolist(),
    }


class Contest(NamedTuple):
    """One model against another, prompt by prompt."""

    outcome: Float[np.ndarray, "prompts"]
    """1 where the first wins, 0 where it loses, a half for a tie."""
    skew: Float[np.ndarray, "prompts"]
    """`length_terms`."""
    scores: Float[np.ndarray, "prompts 2"]
    lengths: Float[np.ndarray, "prompts 2"]
    """Characters."""


def _contest(first: Mapping[str, str], second: Mapping[str, str], judge: Judge) -> Contest:
    if first.keys() != second.keys():
        odd = next(iter(first.keys() ^ second.keys()))
        raise RecordError(f"instructions differ: '{odd[:80]}' is answered by one model only; wanted the same prompts")
    if not first:
        raise RecordError("no instruction is answered; wanted rows of instruction and output")
    sides = (first, second)
    scores = np.array([[_score(judge, prompt, side[prompt]) for side in sides] for prompt in second])
    lengths = np.array([[len(side[prompt]) for side in sides] for prompt in second], float)
    outcome = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
    return Contest(outcome, length_terms(lengths[:, 0] - lengths[:, 1]), scores, lengths)


def _score(judge: Judge, prompt: str, completion: str) -> float:
    """The judge's number. Raises: ConfigError where it gives none or fails."""
    who = f"--judge: {getattr(judge, '__name__', judge)}: an answer to '{prompt[:80]}'"
    try:
        given = judge(prompt, completion)
    except Exception as error:
        raise ConfigError(
            f"{who}: {type(error).__name__}: {error}; wanted score(prompt, completion) -> float"
        ) from error
    try:
        score = float(given)
    except (TypeError, ValueError):
        score = float("nan")
    if np.isnan(score):
        raise ConfigError(f"{who}: got {given!r:.80}, no number; wanted score(prompt, completion) -> float")
    return score


def _by_instruction(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("instruction"), str) or not isinstance(row.get("output"), str):
            raise RecordError(f"row {number}: wanted the texts instruction and output")
        if row["instruction"] in found:
            raise RecordError(f"row {number}: '{row['instruction'][:80]}' is answered twice; wanted each once")
        found[row["instruction"]] = row["output"]
    return found


def length_terms(difference: Float[np.ndarray, "prompts"]) -> Float[np.ndarray, "prompts"]:
    """tanh of the differences over their standard deviation; 0 where all lengths are equal."""
    spread = difference.std()
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def controlled_rate(
    outcome: Float[np.ndarray, "prompts"],
    features: Float[np.ndarray, "prompts terms"],
    weight: Float[np.ndarray, "resamples prompts"],
) -> Float[np.ndarray, "resamples"]:
    """The mean over prompts of what a regression on `features` and a constant predicts where the first feature is 0."""
    design = np.column_stack([np.ones(len(outcome)), features])
    coefficients = np.stack([fit_logistic(design, outcome, times, np.full(design.shape[1], RIDGE)) for times in weight])
    design[:, 1] = 0
    return (weight * expit(coefficients @ design.T)).sum(1) / weight.sum(1)


def instruction_ease(
    outcomes: Sequence[Float[np.ndarray, "prompts"]], skews: Sequence[Float[np.ndarray, "prompts"]]
) -> Float[np.ndarray, "prompts"]:
    """How much easier than others each prompt is to win, whoever answers: g of a regression over models m.

    outcome[m, x] ~ sigmoid(a[m] + b[m] skew[m, x] + g[x]), each g with a standard normal prior.
    """
    models, prompts = len(outcomes), len(outcomes[0])
    who = np.repeat(np.eye(models), prompts, axis=0)
    design = np.hstack([who, who * np.concatenate(skews)[:, None], np.tile(np.eye(prompts), (models, 1))])
    penalty = np.concatenate([np.full(2 * models, RIDGE), np.ones(prompts)])
    return fit_logistic(design, np.concatenate(outcomes), np.ones(len(design)), penalty)[2 * models :]


def fit_logistic(
    design: Float[np.ndarray, "rows terms"],
    outcome: Float[np.ndarray, "rows"],
    weight: Float[np.ndarray, "rows"],
    penalty: Float[np.ndarray, "terms"],
) -> Float[np.ndarray, "terms"]:
    """Coefficients of a weighted logistic regression on outcomes in [0, 1], ridge-penalised, by Newton's method."""
    found = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        p = expit(design @ found)
        slope = design.T @ (weight * (outcome - p)) - penalty * found
        curve = design.T * (weight * p * (1 - p)) @ design + np.diag(penalty)
        # A step is at most 2: where one model wins almost always, a full one would overshoot.
        step = np.clip(np.linalg.solve(curve, slope), -2, 2)
        found += step
        if np.abs(step).max() < 1e-10:
            break
    return found


def compare_files(first: Path, second: Path, judge: Judge, others: Sequence[Path] = ()) -> dict[str, Any]:
    """`compare` of files of AlpacaEval outputs."""
    left, right, *more = (list(read_objects(path)) for path in (first, second, *others))
    return compare(left, right, judge, more)
