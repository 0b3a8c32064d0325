"""How the time of a step grows with its tokens, and with the length of its rows: what attention adds."""

from dataclasses import replace
from itertools import product

import numpy as np

from benchmarks.sizes import Size
from benchmarks.step import batch_of, compile_step, make_examples
from benchmarks.timing import alternate


def bench_tokens(size: Size) -> dict[str, dict[str, float]]:
    """Cost of steps of several shapes: two numbers of rows, three row lengths."""
    lengths = tuple(size.seq * factor // 2 for factor in (1, 2, 4))
    shapes = {f"{rows} x {seq}": (rows, seq) for rows, seq in product((size.rows // 2, size.rows), lengths)}
    steps = {}
    for name, (rows, seq) in shapes.items():
        one = replace(size, rows=rows, seq=seq)
        batch = batch_of(make_examples(one, np.full(rows, seq)), [[row] for row in range(rows)], one)
        steps[name] = compile_step(one, batch)
    costs = alternate(steps, size.repeats)
    return {
        name: {"tokens": rows * seq, "row_tokens": seq, **costs[name]._asdict()} for name, (rows, seq) in shapes.items()
    }


def fit_tokens(steps: dict[str, dict[str, float]]) -> dict[str, float]:
    """Least squares of a + b x tokens + c x tokens x row length to the CPU-seconds: the coefficients, and how much of
    the variance they explain."""
    columns = ("tokens", "row_tokens", "cpu_seconds")
    tokens, length, seconds = (np.array([step[key] for step in steps.values()], float) for key in columns)
    terms = np.stack([np.ones(len(steps)), tokens, tokens * length], axis=1)
    found, *_ = np.linalg.lstsq(terms, seconds, rcond=None)
    plain, *_ = np.linalg.lstsq(terms[:, :2], seconds, rcond=None)
    return {
        "fixed_ms": found[0] * 1e3,
        "us_per_token": found[1] * 1e6,
        "attention_us_per_token_at_longest": found[2] * max(length) * 1e6,
        "r_squared": 1 - np.var(seconds - terms @ found) / np.var(seconds),
        "r_squared_tokens_only": 1 - np.var(seconds - terms[:, :2] @ plain) / np.var(seconds),
    }
