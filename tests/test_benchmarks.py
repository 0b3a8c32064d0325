"""The benchmarks run, at a size where their figures mean nothing; what they count is counted right."""

import json

import jax
import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.reference import compile_online
from benchmarks.sizes import Size
from benchmarks.step import batch_of, make_examples, make_model, step_flops
from benchmarks.tokens import fit_tokens
from rdro_jax.models import abstract_params

TINY = Size(
    layers=1,
    d_model=16,
    vocab=64,
    rows=2,
    seq=16,
    examples=6,
    depths=(1,),
    vocabs=(64,),
    devices=(2,),
    matmul=16,
    repeats=1,
)


def test_every_figure_is_written(tmp_path, capsys):
    main(tmp_path / "bench.json", TINY)
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["size"]["seq"] == 16
    assert figures["head"]["blocked"]["temp_bytes"] > 0
    packed, padded = figures["packing"]["packed"], figures["packing"]["padded"]
    assert packed["rows"] < padded["rows"] == 6
    assert figures["step"]["full rows"]["fraction_of_peak"] > 0
    assert 0 < figures["checkpoint"]["state of the step"]["hashes_cpu_seconds"] < 5
    assert figures["depth"]["1 layers"]["program_kib"] > 0
    cached, online = figures["reference"]["cached"], figures["reference"]["online"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(make_model(TINY))))
    # Its own log-probs, two numbers of the batch, the online step does not read.
    assert online["argument_bytes"] - cached["argument_bytes"] == pytest.approx(4 * weights, abs=64)
    halved = figures["devices"]["2 devices"]["state_bytes_of_a_device"]
    assert 3 * 4 * weights / 2 <= halved < 3 * 4 * weights / 2 * 1.1
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("blocked", "dense", "packed", "padded", "online", "2 x 16", "2 devices"))


def test_flops_are_six_per_weight_and_token():
    """The weights that multiply are the kernels and the tied table; attention adds its two products, thrice."""
    size = Size(seq=128, rows=2)
    params = abstract_params(make_model(size))
    kernels = [leaf["kernel"].size for part in ("self_attn", "mlp") for leaf in params["layers"][part].values()]
    weights = sum(kernels) + params["embed_tokens"]["embedding"].size
    attention = 3 * 2 * size.layers * size.d_model * size.seq
    assert step_flops(size) == pytest.approx(size.rows * size.seq * (6 * weights + attention))


def test_the_online_reference_is_the_policy_at_its_first_step():
    """Then the loss is 2 log 2 whatever the model is, and not what the zeros of the batch would make of it."""
    batch = batch_of(make_examples(TINY, np.full(2, 16)), [[0], [1]], TINY)
    _, metrics = compile_online(TINY, batch)[1]()
    assert metrics["loss"] / metrics["weight"] == pytest.approx(2 * np.log(2))


def test_the_fit_finds_the_terms_it_was_made_of():
    shapes = [(2, 128), (4, 128), (2, 512), (4, 512)]
    cost = lambda rows, seq: 0.05 + 1e-3 * rows * seq + 1e-7 * rows * seq * seq  # noqa: E731
    step = lambda rows, seq: {"tokens": rows * seq, "row_tokens": seq, "cpu_seconds": cost(rows, seq)}  # noqa: E731
    found = fit_tokens({str(shape): step(*shape) for shape in shapes})
    assert found["fixed_ms"] == pytest.approx(50)
    assert found["us_per_token"] == pytest.approx(1000)
    assert found["attention_us_per_token_at_longest"] == pytest.approx(1e-7 * 512 * 1e6)
