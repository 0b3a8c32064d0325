"""The benchmarks run, at a size where their figures mean nothing; what they count is counted right."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.sizes import Size
from benchmarks.step import make_model, step_flops
from rdro_jax.models import abstract_params

TINY = Size(layers=1, d_model=16, vocab=64, rows=2, seq=16, examples=6, depths=(1,), matmul=16, repeats=1)


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
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("blocked", "dense", "packed", "padded"))


def test_flops_are_six_per_weight_and_token():
    """The weights that multiply are the kernels and the tied table; attention adds its two products, thrice."""
    size = Size(seq=128, rows=2)
    params = abstract_params(make_model(size))
    kernels = [leaf["kernel"].size for part in ("self_attn", "mlp") for leaf in params["layers"][part].values()]
    weights = sum(kernels) + params["embed_tokens"]["embedding"].size
    attention = 3 * 2 * size.layers * size.d_model * size.seq
    assert step_flops(size) == pytest.approx(size.rows * size.seq * (6 * weights + attention))
