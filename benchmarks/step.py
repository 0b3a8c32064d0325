"""The train step: packed against padded rows, and its share of the machine's matrix product peak."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.sizes import Size
from benchmarks.timing import alternate
from rdro_jax.batch import Batch
from rdro_jax.data import Examples, pack_batch, plan_rows, token_examples
from rdro_jax.losses import RDRO
from rdro_jax.models import ModelConfig, flops, init_params
from rdro_jax.train import TrainState, completion_logps, init_state, make_train_step


def make_model(size: Size) -> ModelConfig:
    """A tied Qwen 2 with four query heads on two key-value heads."""
    return ModelConfig(
        "qwen2",
        vocab_size=size.vocab,
        d_model=size.d_model,
        n_layers=size.layers,
        n_heads=4,
        n_kv_heads=2,
        head_dim=size.d_model // 4,
        d_ff=4 * size.d_model,
        qkv_bias=True,
        tie_word_embeddings=True,
    )


def make_examples(size: Size, lengths: np.ndarray) -> Examples:
    """Random examples of the given lengths, in tokens; the first third of each is its prompt."""
    tokens = np.random.default_rng(size.seed).integers(0, size.vocab, lengths.sum(), dtype=np.int32)
    whole = np.split(tokens, np.cumsum(lengths)[:-1])
    cuts = np.maximum(1, lengths // 3)
    prompts, completions = zip(*((each[:cut], each[cut:]) for each, cut in zip(whole, cuts, strict=True)), strict=True)
    return token_examples(prompts, completions, np.arange(len(lengths)) % 2 == 0)


def batch_of(examples: Examples, rows: list[list[int]], size: Size) -> Batch:
    """The batch whose rows hold the examples of `rows`."""
    slots = max(map(len, rows))
    plan = np.array([[*row, *[-1] * (slots - len(row))] for row in rows], np.int32)
    zeros = np.zeros(len(examples.lengths), np.float32)
    return jax.device_put(pack_batch(examples, plan, max_length=size.seq, reference_logps=zeros))


def make_step(size: Size) -> tuple[Any, TrainState]:
    """The jitted step, not compiled, and the state it starts from."""
    model, loss, optimizer = make_model(size), RDRO(alpha=0.5), optax.adamw(1e-6)
    step = make_train_step(lambda params, batch: completion_logps(params, model, batch), loss, optimizer)
    state = init_state(init_params(model, jax.random.key(size.seed)), loss, optimizer)
    return jax.jit(step), state


def compile_step(size: Size, batch: Batch) -> Callable[[], Any]:
    """A function that makes one step from the same state each time."""
    step, state = make_step(size)
    compiled = step.lower(state, batch).compile()
    return lambda: compiled(state, batch)


def bench_packing(size: Size) -> dict[str, dict[str, float]]:
    """Tokens and examples per CPU-second of a step on the same examples, many to a row or one to a row."""
    # Log-normal lengths, as completions have: median a fifth of the row.
    draw = np.random.default_rng(size.seed).lognormal(np.log(size.seq / 5), 0.6, size.examples)
    lengths = np.clip(draw, 4, size.seq).astype(np.int64)
    examples = make_examples(size, lengths)
    order = list(range(size.examples))
    rows = {
        "packed": plan_rows(order, lengths, max_length=size.seq, slots=16, window=size.examples),
        "padded": [[index] for index in order],
    }
    costs = alternate(
        {name: compile_step(size, batch_of(examples, plan, size)) for name, plan in rows.items()}, size.repeats
    )
    return {
        name: {
            "rows": len(plan),
            "seconds": costs[name].seconds,
            "tokens_per_cpu_second": float(lengths.sum() / costs[name].cpu_seconds),
            "examples_per_cpu_second": size.examples / costs[name].cpu_seconds,
        }
        for name, plan in rows.items()
    }


def step_flops(size: Size) -> float:
    """Floating point operations of one step that the model asks for; recomputation is not counted."""
    return flops.step_flops(make_model(size), size.rows * size.seq, size.seq).model


def bench_peak(size: Size) -> dict[str, float]:
    """Seconds of a step on full rows, and its share of the float32 matrix product peak measured beside it."""
    examples = make_examples(size, np.full(size.rows, size.seq))
    step = compile_step(size, batch_of(examples, [[row] for row in range(size.rows)], size))
    square = jax.random.normal(jax.random.key(size.seed), (size.matmul, size.matmul), jnp.float32)
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    costs = alternate({"step": step, "matmul": lambda: product(square, square)}, size.repeats)
    peak = 2.0 * size.matmul**3 / costs["matmul"].seconds
    reached = step_flops(size) / costs["step"].seconds
    return {
        "seconds": costs["step"].seconds,
        "tokens_per_second": size.rows * size.seq / costs["step"].seconds,
        "gflops_per_second": reached / 1e9,
        "matmul_peak_gflops_per_second": peak / 1e9,
        "fraction_of_peak": reached / peak,
    }
