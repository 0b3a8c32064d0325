"""The coordinator: keeps the slots full, takes up what was left, and tells the journal how trials end."""

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import Trial, TrialState

from rdro_jax.config import Config
from rdro_jax.errors import EXIT_DONE, EXIT_RESTART, ConfigError
from rdro_jax.sweep.executors import Executor, Job
from rdro_jax.sweep.journal import Journal, folder_number
from rdro_jax.sweep.results import summarise
from rdro_jax.sweep.runs import Run, is_finite, runs_of
from rdro_jax.sweep.space import Point
from rdro_jax.sweep.spec import LoadedSweep
from rdro_jax.train.console import say
from rdro_jax.train.program import program_key

FIRST_SIGNAL_DEATH = 128
"""Exit codes above it are deaths by a signal, worth a restart."""


@dataclass(eq=False)
class OpenTrial:
    """A trial without an end."""

    trial: Trial
    point: Point
    runs: list[Run]
    inputs: Hashable
    """What its prepared data and reference log-probs depend on: runs that agree in it share them."""
    program: Config | None
    """What its compiled step depends on, likewise; None where nobody waits for one."""
    values: dict[str, float] = field(default_factory=dict)
    """Objective of its finished runs, by the run's name."""
    reported: int = 0
    """Newest step that the pruner was told of."""
    began: float = field(default_factory=time.time)

    @property
    def shared(self) -> list[Any]:
        """What it may have in common with other trials, and one run makes for all."""
        return [part for part in (self.inputs, self.program) if part is not None]


class Coordinator:
    """One process that decides; runs are jobs of the executor."""

    def __init__(self, loaded: LoadedSweep, journal: Journal, executor: Executor):
        self._loaded, self._journal, self._executor = loaded, journal, executor
        self._open: list[OpenTrial] = []
        self._jobs: dict[Run, tuple[Job, int | None]] = {}
        self._deaths: Counter[str] = Counter()
        self._ready: set[Any] = set()
        """What was shared by a run whose first step is logged."""
        for trial in journal.under_way():
            for run in self._take_up(trial).runs:
                found = executor.find(run)
                if found is not None:
                    self._jobs[run] = found

    def busy(self) -> bool:
        """Whether anything is going on or still to do; starts what fits into free slots."""
        self._collect()
        while len(self._jobs) < self._loaded.sweep.parallel and self._start_one():
            pass
        return bool(self._jobs)

    def stop(self) -> bool:
        """Ask everything to save and end; False once it has, and at once where runs do without a coordinator."""
        if self._executor.detached:
            return False
        for job, _ in self._jobs.values():
            job.stop()
        self._jobs = {run: (job, slot) for run, (job, slot) in self._jobs.items() if job.poll() is None}
        return bool(self._jobs)

    def _take_up(self, trial: Trial) -> OpenTrial:
        """Enter a trial that was asked for, now or by an earlier coordinator."""
        point = self._loaded.space.suggest(trial)
        runs = runs_of(self._loaded, folder_number(trial), point)
        config = self._loaded.config(point)
        # A job may stand in a queue for hours, which is longer than its program takes to compile twice.
        program = None if self._executor.detached else program_key(config)
        opened = OpenTrial(trial, point, runs, inputs=_inputs(config), program=program)
        self._open.append(opened)
        return opened

    def _start_one(self) -> bool:
        """Start the next run that may start; a new trial only where no open one has any left."""
        for opened in [*self._open]:
            for run in self._startable(opened):
                if run.result() is not None:  # it ended while no coordinator looked
                    self._run_finished(opened, run)
                    return True
                slot = self._free_slot()
                self._jobs[run] = self._executor.start(run, slot), slot
                return True
        if any(not self._is_ready(opened.inputs) or self._waits(opened) for opened in self._open):
            return False
        trial = self._journal.ask()
        if trial is not None:
            self._take_up(trial)
        return trial is not None

    def _startable(self, opened: OpenTrial) -> list[Run]:
        """Runs that wait for nothing but a slot."""
        waiting = [run for run in opened.runs if run not in self._jobs and run.name not in opened.values]
        if not waiting or not self._may_begin(opened):
            return []
        # Pruning looks at the first seed: the others are worth their money only when it passes.
        if self._loaded.sweep.pruner is not None and opened.runs[0].name not in opened.values:
            return waiting[:1] if waiting[0] is opened.runs[0] else []
        return waiting

    def _may_begin(self, opened: OpenTrial) -> bool:
        """False while another run prepares the data and reference log-probs, or compiles the program, that it needs."""
        going_on = [other for other in self._open if any(run in self._jobs for run in other.runs)]
        being_made = {part for other in going_on for part in other.shared}
        return all(self._is_ready(part) or part not in being_made for part in opened.shared)

    def _waits(self, opened: OpenTrial) -> bool:
        """Whether nothing of it has begun, for what another run is about to make: who comes later would only wait too,
        chosen before its time."""
        begun = any(run in self._jobs or run.name in opened.values for run in opened.runs)
        return not begun and not self._may_begin(opened)

    def _is_ready(self, part: Any) -> bool:
        if part not in self._ready:
            same = [other for other in self._open if part in other.shared]
            if any(run.has_begun() for other in same for run in other.runs):
                self._ready.add(part)
        return part in self._ready

    def _free_slot(self) -> int:
        taken = {slot for _, slot in self._jobs.values()}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def _collect(self) -> None:
        """See which jobs ended, and which trials are to be given up."""
        for opened in [*self._open]:
            for run in opened.runs:
                code = self._jobs[run][0].poll() if run in self._jobs else None
                if code is not None:
                    del self._jobs[run]
                    if opened in self._open:  # another seed may have ended it a moment ago
                        self._run_ended(opened, run, code)
            if opened in self._open and self._is_hopeless(opened):
                self._end(opened, TrialState.PRUNED, step=opened.reported)
        self._reap()

    def _reap(self) -> None:
        """Let go of the runs of trials that ended without them."""
        wanted = {run for opened in self._open for run in opened.runs}
        for run, (job, _) in [*self._jobs.items()]:
            if run not in wanted:
                job.stop()
                if job.poll() is not None:
                    del self._jobs[run]

    def _run_ended(self, opened: OpenTrial, run: Run, code: int) -> None:
        if code == EXIT_DONE:
            self._run_finished(opened, run)
        elif code == EXIT_RESTART:
            say(f"{run.name}: saved its state; it goes on later")
        elif code > FIRST_SIGNAL_DEATH and self._deaths[run.name] < self._loaded.sweep.restarts:
            self._deaths[run.name] += 1
            say(f"{run.name}: died by signal {code - FIRST_SIGNAL_DEATH}; it is started again")
        else:
            say(f"{run.name}: failed with code {code}: {run.last_words()}")
            self._end(opened, TrialState.FAIL, code=code, why=run.last_words(), run=run.name)

    def _run_finished(self, opened: OpenTrial, run: Run) -> None:
        """Note the objective of a run; the trial ends with its last one."""
        self._ready.update(opened.shared)
        metric, result = self._loaded.sweep.objective.metric, run.result() or {}
        value = result.get(metric)
        if metric not in result:
            raise ConfigError(
                f"objective.metric: '{metric}' is no metric of {run.folder}; it has {', '.join(sorted(result))}. Put "
                f"another in the sweep file and remove {self._loaded.folder}/sweep.json and journal.log: runs are kept"
            )
        if not is_finite(value):
            self._end(opened, TrialState.FAIL, code=EXIT_DONE, why=f"{metric} is {value}", run=run.name)
            return
        opened.values[run.name] = float(value)
        if len(opened.values) == len(opened.runs):
            values = [opened.values[run.name] for run in opened.runs]
            mean, half_width = summarise(values)
            self._end(opened, TrialState.COMPLETE, mean, values=values, ci95=half_width)

    def _is_hopeless(self, opened: OpenTrial) -> bool:
        """Whether the pruner gives the trial up by what its first seed has logged."""
        pruner, objective = self._loaded.sweep.pruner, self._loaded.sweep.objective
        if pruner is None or opened.runs[0].name in opened.values:
            return False
        other_way = (pruner.direction or objective.direction) != objective.direction
        new = [(s, v) for s, v in opened.runs[0].curve(pruner.metric or objective.metric) if s > opened.reported]
        for step, value in new:
            opened.trial.report(-value if other_way else value, step)
            opened.reported = step
        return bool(new) and opened.trial.should_prune()

    def _end(self, opened: OpenTrial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """Tell the journal; what the trial still runs is stopped with the next look round."""
        facts |= {"seconds": round(time.time() - opened.began, 1)}
        self._journal.tell(opened.trial, state, value, **facts)
        self._open.remove(opened)
        figure = "" if value is None else f" {self._loaded.sweep.objective.metric} {value:.6g}"
        say(f"trial {folder_number(opened.trial):04d}: {state.name.lower()}{figure}  {opened.point}")


def _inputs(config: Config) -> Hashable:
    loss = config.loss
    return config.data, config.model, config.reference, loss.paired, loss.needs_reference, loss.needs_mismatched
