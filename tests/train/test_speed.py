"""Seconds by phase and shares of the peak, by a clock that the test turns."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import CONFIG

from rdro_jax.parallel.hardware import peak_flops
from rdro_jax.train import speed
from rdro_jax.train.speed import Speed, tracing

RUN = SimpleNamespace(data=SimpleNamespace(max_length=32), model=SimpleNamespace(lora=None))


def policy_on(kind, count=2):
    devices = np.array([SimpleNamespace(device_kind=kind)] * count)
    return SimpleNamespace(model=CONFIG, mesh=SimpleNamespace(devices=devices))


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_phases_add_up_and_goodput_is_what_is_left(clock):
    run = Speed(RUN, policy_on("cpu"))
    for _ in range(2):
        with run.phase("save"):
            clock[0] += 0.25
    with run.phase("eval"):
        clock[0] += 1
    assert run.spent() == 1.5
    figures = run.figures(10.0, tokens_per_s=100.0)
    assert figures == {"time/save_s": 0.5, "time/eval_s": 1.0, "throughput/goodput": 0.85}
    assert run.figures(1.0, None) == {"throughput/goodput": 1.0}


def test_mfu_follows_its_convention_which_is_printed(capsys):
    run = Speed(RUN, policy_on("NVIDIA H200"))
    # 2 layers of q, k, v, o and a gated MLP, the tied head; 6 per head dimension, head and position of attention
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    per_token = 6 * (2 * layer + 64 * 32) + 6 * 2 * 32 * 32
    assert run.figures(1.0, 1e6)["throughput/mfu"] == pytest.approx(1e6 * per_token / (2 * 989e12))
    shown = capsys.readouterr().err
    assert "of 2 x 989 TFLOP/s dense bfloat16" in shown
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == 459e12


@pytest.mark.parametrize(("start", "warned"), [(2, False), (9, True)])
def test_a_trace_that_no_step_began_is_told(monkeypatch, tmp_path, capsys, start, warned):
    begun = []
    monkeypatch.setattr(speed.jax.profiler, "start_trace", begun.append)
    monkeypatch.setattr(speed.jax.profiler, "stop_trace", lambda: None)
    with tracing(SimpleNamespace(profile=SimpleNamespace(start=start, steps=1)), tmp_path) as mark:
        for number in (1, 2, 3):
            mark(number, None)
    assert bool(begun) is not warned
    assert (f"profile.start: step {start} was not among the steps" in capsys.readouterr().err) is warned
