"""Metrics of steps on their way to metrics.jsonl and the eyes of a person, one step late."""

import math
import time
from typing import Any

import jax
import numpy as np
import optax

from rdro_jax.config import Config
from rdro_jax.data import Loader
from rdro_jax.errors import DivergedError, RecordError
from rdro_jax.losses import LossBase
from rdro_jax.optim import make_schedule
from rdro_jax.parallel import is_first, path_name
from rdro_jax.run_files import EVALUATIONS_FILE, METRICS_FILE, dotted
from rdro_jax.train.console import Report, say
from rdro_jax.train.dataset import Evaluation
from rdro_jax.train.metrics import MetricsWriter, Window
from rdro_jax.train.run import RunFolder
from rdro_jax.train.speed import Speed
from rdro_jax.train.state import TrainState
from rdro_jax.train.trackers import Told, Trackers


def due(step: int, interval: int | None) -> bool:
    """Whether something done every `interval` steps is done after this one; None is never."""
    return interval is not None and step % interval == 0


class Recorder:
    """Turns the metrics of steps into lines of metrics.jsonl, and ends a run that leads nowhere."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        loss: LossBase,
        loader: Loader,
        num_steps: int,
        state: TrainState,
        speed: Speed,
    ):
        self._config, self._loss, self._loader, self._num_steps, self._speed = config, loss, loader, num_steps, speed
        self._leaves = [path_name(path) for path, _ in jax.tree.leaves_with_path(state.params)]
        # All at once: a rate asked for on the way would wait on the device, behind the step that is under way.
        self._rates = np.asarray(jax.jit(jax.vmap(make_schedule(config.optimizer, num_steps)))(np.arange(num_steps)))
        self._skipped = _skipped_before(run.resume_step, state)
        files = {METRICS_FILE: "eval_", EVALUATIONS_FILE: ""} if is_first() else {}
        self._writers = {
            name: MetricsWriter(
                run.path / name, resume_step=run.resume_step, repeated=prefix if "evaluate" in run.owed else None
            )
            for name, prefix in files.items()
        }
        told = Told(run.path, dotted(config.model_dump(mode="json")), run.resume_step)
        self._trackers = Trackers(config.report_to if is_first() else (), told)
        self._held: tuple[int, Any, float] | None = None
        self._window, self._since, self._waited = Window(loss, run.window), time.monotonic(), 0.0
        self._skipped_in_a_row = 0
        self.rollbacks: int = (run.window or {}).get("rollbacks", 0)
        """Times the run went back to a checkpoint since it began."""
        self.evaluated_step: int | None = None
        """The last step whose state was evaluated, as far as this process knows."""
        # A run that was killed behind its last save has no step left to tell its result.
        self.latest: dict[str, Any] = self._writers[METRICS_FILE].latest if self._writers else {}
        """The newest value of every metric."""

    def hold(self, number: int, metrics: Any, waited: float) -> None:
        """Keep the metrics of a step that may still be running, and the seconds waited for batches until it began."""
        self._held = number, metrics, waited

    def fetch(self, show: Report) -> None:
        """Wait for the held step, and log its window where one ends. Raises: `DivergedError`, `RecordError`."""
        if self._held is None:
            return
        number, held, waited = self._held
        self._held = None
        metrics = {name: float(value) for name, value in jax.device_get(held).items()}
        self._window.add(metrics)
        if due(number, self._config.logging_steps) or number == self._num_steps:
            now = time.monotonic()
            rate = float(self._rates[max(number - 1 - self._skipped, 0)])
            line = {"epoch": round(self._loader.epoch(number), 4), "learning_rate": rate, **self._window.means()}
            seconds = now - self._since
            rates = self._window.rates(seconds - self._speed.spent(), waited - self._waited)
            rates |= self._speed.figures(seconds, rates.get("throughput/tokens_per_s"))
            self.write(number, line | rates)
            show({"step": number} | self.latest)
            self._window, self._since, self._waited = Window(self._loss), now, waited
        self._judge(number, metrics)

    def went_back(self, number: int, good: int, state: TrainState) -> None:
        """Tell that the state after step `number` is that of checkpoint `good`."""
        self.rollbacks, self._skipped_in_a_row, self._skipped = self.rollbacks + 1, 0, _skipped_before(number, state)
        self.write(number, {"rollback_to": good})

    def write(self, number: int, line: dict[str, Any]) -> None:
        """Append a line of metrics."""
        self.latest |= line
        self._append(METRICS_FILE, number, line)
        self._trackers.write(number, line)

    def evaluated(self, number: int, evaluation: Evaluation | None) -> None:
        """Append what an evaluation says; None where there are no held-out rows."""
        self.evaluated_step = number
        if evaluation is not None:
            self.write(number, evaluation.metrics)
            self._append(EVALUATIONS_FILE, number, evaluation.pictures)

    def close(self) -> None:
        """Close the files and the trackers."""
        for writer in self._writers.values():
            writer.close()
        self._trackers.close()

    def _append(self, name: str, number: int, line: dict[str, Any]) -> None:
        if name in self._writers:
            self._writers[name].write({"step": number} | line)

    def window(self) -> dict[str, Any]:
        """What was fetched since the last line and how often the run went back, for the checkpoint."""
        return self._window.saved() | {"rollbacks": self.rollbacks}

    def _judge(self, number: int, metrics: dict[str, float]) -> None:
        if not metrics["skipped"]:
            self._skipped_in_a_row = 0
            if number == 1 and metrics["grad_norm"] == 0:
                raise RecordError(
                    "step 1: the gradient is exactly 0, so nothing would be learnt: no scored completion token "
                    "reaches the loss; look at data_report.json and at the chat template"
                )
            return
        self._skipped += 1
        self._skipped_in_a_row += 1
        members = self._loader.members(number - 1)
        leaf = self._leaves[int(metrics["first_bad_leaf"])]
        spike = math.isfinite(metrics["grad_norm"] + metrics["loss"])
        what = (
            f"step {number}: loss {metrics['loss'] / (metrics['weight'] or 1):.4g}, gradient norm "
            f"{metrics['grad_norm']:.4g}: "
            f"{f'above optimizer.skip_grad_norm, most in {leaf}' if spike else f'not finite, first in {leaf}'}; "
            f"rows {_spell(members[members >= 0])} of the data"
        )
        if self._skipped_in_a_row < self._config.max_skipped_steps:
            say(f"warning: {what}; the step is skipped")
            return
        raise DivergedError(
            f"{what}; {self._skipped_in_a_row} steps in a row; lower optimizer.learning_rate, or look at these rows"
        )


def _skipped_before(number: int, state: TrainState) -> int:
    """Steps of `number` that left the state alone, in which the optimizer's count, the schedule's too, stood still."""
    return number - int(optax.tree_utils.tree_get_all_with_path(state.opt_state, "count")[0][1])


def _spell(members: Any, most: int = 8) -> str:
    """Numbers of examples, from 1, the first few of them."""
    shown = ", ".join(str(index + 1) for index in members[:most])
    return f"{shown}, ..." if len(members) > most else shown
