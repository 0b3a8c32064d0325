"""What a run does between two steps: evaluate, export, save, and stop where it is asked to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rdro_jax.checkpoint import CheckpointWriter
from rdro_jax.config import Config
from rdro_jax.errors import ConfigError, RestartWanted
from rdro_jax.train.dataset import Evaluation
from rdro_jax.train.recorder import Recorder, due
from rdro_jax.train.run import Task, identity
from rdro_jax.train.speed import Speed
from rdro_jax.train.state import TrainState, state_items
from rdro_jax.train.stopping import StopReason
from rdro_jax.train.watchdog import Watchdog


class _Stop(Exception):
    """Raised in the middle of an evaluation."""


class Between(NamedTuple):
    """What is done between steps, with all that it takes."""

    config: Config
    run_dir: Path
    judge: Callable[[TrainState, Callable[[], None]], Evaluation | None]
    """The held-out rows under a state; calls the second argument after each batch."""
    publish: Callable[[int, TrainState, dict[str, Any]], None]
    """Exports the policy on the way: its step, the state, the newest metrics."""
    settle: Callable[[int, TrainState], TrainState]
    """The state after a step, once that step's metrics are fetched and sound."""
    recorder: Recorder
    speed: Speed
    saver: CheckpointWriter
    watch: Watchdog
    stop_reason: StopReason

    def __call__(self, number: int, state: TrainState, tasks: set[Task], *, saved: bool = False) -> TrainState:
        """Do `tasks` after step `number`. Where a stop is asked for, nothing but a save begins, no evaluation goes on,
        and the run that goes on owes the rest. `saved` says that there is a checkpoint of the step, which stays.

        Raises: `RestartWanted` where a stop is asked for, after the state is saved; `ConfigError` as `_best_metric`.
        """
        stop = self._stop_reason()
        if not tasks and stop is None:
            return state
        state, tasks = self.settle(number, state), set(tasks)
        for task, act in (("evaluate", self._evaluate), ("export", self._export)):
            if stop is None and task in tasks:
                stop = act(number, state)
                tasks -= {task} if stop is None else set()
        if saved:
            self.saver.tell(number, self._best_metric(number))
        elif stop is not None or "save" in tasks:
            self._save(number, state, tasks)
        if stop is not None:
            self.saver.wait()
            raise RestartWanted(f"{self.run_dir}: {stop}: state saved after step {number}; the same command goes on")
        return state

    def _stop_reason(self) -> str | None:
        # A step and a save may follow until it is asked again and heard.
        return self.stop_reason(2 * self.watch.median() + self.saver.seconds)

    def _evaluate(self, number: int, state: TrainState) -> str | None:
        """Evaluate, or why that was broken off."""

        def go_on() -> None:
            self.watch.alive()
            stop = self._stop_reason()
            if stop is not None:
                raise _Stop(stop)

        try:
            with self.speed.phase("eval"):
                self.recorder.evaluated(number, self.judge(state, go_on))
        except _Stop as stop:
            return str(stop)
        return None

    def _export(self, number: int, state: TrainState) -> None:
        self.watch.rest()
        with self.speed.phase("save"):
            self.publish(number, state, self.recorder.latest)

    def _save(self, number: int, state: TrainState, tasks: set[Task]) -> None:
        self.watch.rest()
        owed = sorted(tasks - {"save"})
        meta = {"config": identity(self.config), "window": self.recorder.window(), "owed": owed}
        with self.speed.phase("save"):
            self.saver.save(number, state_items(state), meta, self._best_metric(number))

    def _best_metric(self, number: int) -> dict[str, float | None] | None:
        """What checkpoints are compared by; None where step `number` was not evaluated, or nothing is compared.

        Raises: ConfigError where no evaluation tells it.
        """
        name = self.config.checkpoint.metric_for_best_model
        if name is None or self.recorder.evaluated_step != number:
            return None
        known = sorted(key for key in self.recorder.latest if key.startswith("eval_"))
        if name not in known:
            wanted = ", ".join(known) or "none, for no data.eval"
            raise ConfigError(f"checkpoint.metric_for_best_model: got '{name}'; wanted one of {wanted}")
        return {name: self.recorder.latest[name]}


def tasks_after(config: Config, number: int, num_steps: int) -> set[Task]:
    """What is to be done after a step; the last one's export is the run's own."""
    last = number == num_steps
    wanted: dict[Task, bool] = {
        "evaluate": last or due(number, config.eval_steps),
        "export": not last and due(number, config.checkpoint.export_steps),
        "save": last or due(number, config.checkpoint.save_steps),
    }
    return {task for task, is_wanted in wanted.items() if is_wanted}
