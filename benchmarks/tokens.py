"""How the time of a step grows with its tokens, and with the length of its rows: what attention adds."""

from dataclasses import replace
from itertools import product

import numpy as np

from benchmarks.sizes import Size
from benchmarks.step import batch_of, compile_step, make_examples
from benchmarks.timing import alternate


def bench_tokens(size: Size) -> dict[str, dict[str, float]]:
    """Fit of a + b x tokens + c x tokens x row length to the CPU-seconds of steps of several shapes."""
    lengths = tuple(size.seq * factor // 2 for factor in (1, 2, 4))
    shapes = list(product((size.rows // 2, size.rows), lengths))
    steps = {}
    for rows, seq in shapes:
        one = replace(size, rows=rows, seq=seq)
        batch = batch_of(make_examples(one, np.full(rows, seq)), [[row] for row in range(rows)], one)
        steps[f"{rows} x {seq}"] = compile_step(one, batch)
    costs = alternate(steps, size.repeats)
    return {"fit": fit(shapes, [costs[f"{rows} x {seq}"].cpu_seconds for rows, seq in shapes])}


def fit(shapes: list[tuple[int, int]], seconds: list[float]) -> dict[str, float]:
    """Least squares over (rows, row length): the coefficients, and how much of the variance they explain."""
    tokens = np.array([rows * seq for rows, seq in shapes], float)
    length = np.array([seq for _, seq in shapes], float)
    terms = np.stack([np.ones(len(shapes)), tokens, tokens * length], axis=1)
    found, *_ = np.linalg.lstsq(terms, np.array(seconds), rcond=None)
    residual = np.var(np.array(seconds) - terms @ found)
    plain, *_ = np.linalg.lstsq(terms[:, :2], np.array(seconds), rcond=None)
    return {
        "fixed_ms": found[0] * 1e3,
        "us_per_token": found[1] * 1e6,
        "attention_us_per_token_at_longest": found[2] * max(length) * 1e6,
        "r_squared": 1 - residual / np.var(seconds),
        "r_squared_tokens_only": 1 - np.var(np.array(seconds) - terms[:, :2] @ plain) / np.var(seconds),
    }
