"""Where the time of a run goes, how well the devices are used, and a trace of some steps."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rdro_jax.config import Config
from rdro_jax.models.flops import step_flops
from rdro_jax.parallel.hardware import peak_flops
from rdro_jax.train.console import say
from rdro_jax.train.policy import Policy

TRACE_FOLDER = "profile"
"""Where in the run folder a trace is written, for TensorBoard's profiler or xprof."""


class Speed:
    """Seconds by phase since the last line of metrics, and the share of the devices' peak."""

    def __init__(self, config: Config, policy: Policy):
        """Clocks at zero; says which convention the model FLOP utilisation follows, where the peak is known."""
        self._spent: defaultdict[str, float] = defaultdict(float)
        devices = policy.mesh.devices.ravel()
        peak = peak_flops(devices[0].device_kind)
        self._per_token = step_flops(policy.model, 1, config.data.max_length, config.model.lora).model
        self._peak = None if peak is None else peak * len(devices)
        if peak is not None:
            say(
                f"MFU: {self._per_token / 1e9:.3g} GFLOP per token of the model (6 per weight, causal half of "
                f"attention, nothing twice; padding none), of {len(devices)} x {peak / 1e12:g} TFLOP/s dense bfloat16"
            )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time until it closes as that of `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[name] += time.monotonic() - start

    def spent(self) -> float:
        """Seconds of all phases since the clocks stood at zero."""
        return sum(self._spent.values())

    def figures(self, seconds: float, tokens_per_s: float | None) -> dict[str, float]:
        """Figures of a window of `seconds`, and the clocks at zero again.

        `time/eval_s`, `time/save_s`: seconds of the window. `throughput/goodput`: the share that is left for steps.
        `throughput/mfu`: model FLOPs per second over the devices' peak, where that is known.
        """
        figures: dict[str, float] = {f"time/{name}_s": value for name, value in self._spent.items()}
        figures["throughput/goodput"] = max(0.0, 1 - self.spent() / seconds)
        self._spent.clear()
        if self._peak is not None and tokens_per_s is not None:
            figures["throughput/mfu"] = tokens_per_s * self._per_token / self._peak
        return figures


@contextmanager
def tracing(config: Config, folder: Path) -> Iterator[Callable[[int, Any], None]]:
    """A function to call before each step with its number and the state: traces the steps that the config names.

    Says at the end where none of them was among the steps, as of a run that went on behind them.
    """
    wanted = config.profile
    active = traced = False

    def mark(number: int, state: Any) -> None:
        nonlocal active, traced
        if wanted is None:
            return
        if active and number >= wanted.start + wanted.steps:
            stop(state)
        elif number == wanted.start:
            jax.block_until_ready(state)  # what came before is no part of the trace
            jax.profiler.start_trace(folder / TRACE_FOLDER)
            active = traced = True

    def stop(state: Any = None) -> None:
        nonlocal active
        if active:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            active = False
            say(f"{folder / TRACE_FOLDER}: trace of {wanted.steps} steps from step {wanted.start} on")  # pyright: ignore[reportOptionalMemberAccess]

    try:
        yield mark
    finally:
        stop()
        if wanted is not None and not traced:
            say(f"warning: profile.start: step {wanted.start} was not among the steps of this process; no trace")
