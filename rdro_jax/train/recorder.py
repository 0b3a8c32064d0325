"""Metrics of steps on their way to metrics.jsonl and the eyes of a person, one step late."""

import time
from typing import Any

import jax
import numpy as np

from rdro_jax.config import Config
from rdro_jax.data import Loader
from rdro_jax.errors import DivergedError, RecordError
from rdro_jax.losses import LossBase
from rdro_jax.optim import make_schedule
from rdro_jax.train.console import Report
from rdro_jax.train.metrics import MetricsWriter, Window
from rdro_jax.train.run import METRICS_FILE, RunFolder


def due(step: int, interval: int | None) -> bool:
    """Whether something done every `interval` steps is done after this one; None is never."""
    return interval is not None and step % interval == 0


class Recorder:
    """Turns the sums of steps into lines of metrics.jsonl, and refuses numbers that are not finite."""

    def __init__(self, config: Config, run: RunFolder, loss: LossBase, loader: Loader, num_steps: int, show: Report):
        self._config, self._loss, self._loader, self._show, self._num_steps = config, loss, loader, show, num_steps
        self._schedule = make_schedule(config.optimizer, num_steps)
        self._writer = MetricsWriter(run.path / METRICS_FILE, resume_step=run.resume_step)
        self._held: tuple[int, Any] | None = None
        self._window, self._since = Window(self._loss), time.monotonic()
        self.latest: dict[str, Any] = {}
        """The newest value of every metric."""

    def hold(self, number: int, sums: Any) -> None:
        """Keep the sums of a step that may still be running."""
        self._held = number, sums

    def fetch(self) -> None:
        """Wait for the held step, and log its window where one ends."""
        if self._held is None:
            return
        number, sums = self._held
        self._held = None
        sums = {name: float(value) for name, value in jax.device_get(sums).items()}
        _refuse_useless(number, sums)
        self._window.add(sums)
        if due(number, self._config.logging_steps) or number == self._num_steps:
            now = time.monotonic()
            rate = float(np.asarray(self._schedule(number - 1)))
            line = {"epoch": round(self._loader.epoch(number), 4), "learning_rate": rate, **self._window.means()}
            self.write(number, line | self._window.rates(now - self._since))
            self._show({"step": number} | self.latest)
            self._window, self._since = Window(self._loss), now

    def write(self, number: int, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        if line:
            self._writer.write({"step": number} | line)
            self.latest |= line


def _refuse_useless(number: int, sums: dict[str, float]) -> None:
    if not np.isfinite(sums["loss"]) or not np.isfinite(sums["grad_norm"]):
        raise DivergedError(
            f"step {number}: loss {sums['loss'] / sums['weight']:.4g}, gradient norm {sums['grad_norm']:.4g}: not "
            "finite; lower optimizer.learning_rate, or start again from the last checkpoint with another seed"
        )
    if number == 1 and sums["grad_norm"] == 0:
        raise RecordError(
            "step 1: the gradient is exactly 0, so nothing would be learnt: no scored completion token reaches the "
            "loss; look at data_report.json and at the chat template"
        )
