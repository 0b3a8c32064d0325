"""The trials of a sweep in Optuna's journal: asked for, found again after a crash, told."""

import os
import warnings
from pathlib import Path
from typing import Any

from rdro_jax.errors import ConfigError
from rdro_jax.sweep.files import JOURNAL_FILE
from rdro_jax.sweep.points import next_point
from rdro_jax.sweep.space import LOSS_NAME, Point
from rdro_jax.sweep.spec import LoadedSweep, Pruner, Sweep

try:
    import optuna
except ImportError:
    raise ConfigError("sweeps need the package optuna: pip install 'rdro_jax[sweep]'") from None

from optuna.importance import PedAnovaImportanceEvaluator
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

STUDY = "sweep"
RETRY_OF = "retry_of"
"""Attribute of a trial that takes the place of a failed one: that one's number, whose folders it goes on in."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Journal:
    """The trials of a sweep; one process at a time may change them."""

    def __init__(self, loaded: LoadedSweep):
        """Open the journal in the sweep's folder, or begin one there."""
        file = loaded.folder / JOURNAL_FILE
        _repair(file)
        self.loaded = loaded
        storage = JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))
        pruner, direction = make_pruner(loaded.sweep.pruner), loaded.sweep.objective.direction
        if storage.get_all_studies():
            self._study = optuna.load_study(study_name=STUDY, storage=storage, pruner=pruner)
        else:
            self._study = optuna.create_study(study_name=STUDY, storage=storage, pruner=pruner, direction=direction)

    def trials(self) -> list[FrozenTrial]:
        """Every trial that counts, in order: a retry stands in the place of the trial that failed."""
        newest = {folder_number(trial): trial for trial in self._study.get_trials(deepcopy=False)}
        return sorted(newest.values(), key=folder_number)

    def under_way(self) -> list[Trial]:
        """Trials that were begun and have no end, as a sweep that was stopped left them."""
        return [self._resumed(trial) for trial in self.trials() if trial.state is TrialState.RUNNING]

    def ask(self) -> Trial | None:
        """The next trial; None where all of the sweep's are asked for, or the space has no other point."""
        sweep, trials = self.loaded.sweep, self.trials()
        waiting = any(trial.state is TrialState.WAITING for trial in trials)
        if not waiting and not self._enqueue(trials):
            return None
        self._study.sampler = make_sampler(sweep, len(trials))
        return self._study.ask()

    def retry_failed(self) -> int:
        """Put every failed trial in line again, in its own folder; returns how many."""
        failed = [trial for trial in self.trials() if trial.state is TrialState.FAIL]
        for trial in failed:
            attributes = {RETRY_OF: folder_number(trial)}
            self._study.enqueue_trial(trial.params, user_attrs=attributes)
        return len(failed)

    def tell(self, trial: Trial, state: TrialState, value: float | None = None, **facts: Any) -> None:
        """Write down how a trial ended; `facts` come first, so that no ended trial lacks them."""
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self._study.tell(trial, value, state)

    def importance(self) -> dict[str, float]:
        """Share of each key in what makes the objective good, from four finished trials on; a key that one loss has
        to itself is weighed against the others among that loss's trials."""
        finished = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        space, shares = self.loaded.space, {}
        for loss, own in space.losses.items():
            names = space.names({LOSS_NAME: loss})
            members = [trial for trial in finished if trial.params[LOSS_NAME] == loss]
            if own and _enough(members):
                found = self._shares([names[key] for key in (*own, *space.common)])
                shares |= {f"{key} ({loss})": found[names[key]] for key in own}
        common = [*([LOSS_NAME] if len(space.losses) > 1 else []), *space.common]
        return shares | (self._shares(common) if common and _enough(finished) else {})

    def _shares(self, names: list[str]) -> dict[str, float]:
        """Of parameters under Optuna's names; they add up to 1."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = PedAnovaImportanceEvaluator()
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator, params=names)

    def point(self, trial: FrozenTrial) -> Point:
        """The point of a trial, which Optuna knows under its own names."""
        params = trial.params or trial.system_attrs.get("fixed_params", {})
        names = self.loaded.space.names(params)
        return {key: params[name] for key, name in names.items() if name in params}

    def _enqueue(self, trials: list[FrozenTrial]) -> bool:
        """Bring the next point into line; True where a trial can be asked for. Optuna's own sampler needs no line."""
        sweep, space, number = self.loaded.sweep, self.loaded.space, len(trials)
        if number >= self.loaded.planned:
            return False
        name = sweep.sampler.name
        if name == "tpe" and number >= sweep.sampler.startup:
            return True
        point = next_point(self.loaded, number, [self.point(trial) for trial in trials])
        if point is not None:
            names = space.names(point)
            self._study.enqueue_trial({names[key]: value for key, value in point.items()})
        return point is not None

    def _resumed(self, trial: FrozenTrial) -> Trial:
        self._study.sampler = make_sampler(self.loaded.sweep, trial.number)
        return Trial(self._study, trial._trial_id)


def folder_number(trial: FrozenTrial | Trial) -> int:
    """Number of the trial's folder."""
    return trial.user_attrs.get(RETRY_OF, trial.number)


def make_sampler(sweep: Sweep, number: int) -> BaseSampler:
    """Optuna's sampler for trial `number`, seeded by it: a resumed sweep goes on as if it had not stopped."""
    seed = (sweep.sampler.seed * 1_000_003 + number) % 2**32
    if sweep.sampler.name != "tpe":
        return RandomSampler(seed)  # every point stands in line already
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        liar = sweep.parallel > 1  # trials under way count as bad ones, lest all slots try one place
        return TPESampler(seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=liar)


def make_pruner(pruner: Pruner | None) -> BasePruner:
    """Optuna's pruner; steps are optimizer steps."""
    if pruner is None:
        return NopPruner()
    if pruner.name == "median":
        return MedianPruner(n_startup_trials=pruner.startup, n_warmup_steps=pruner.warmup_steps)
    return _Halving(pruner)


class _Halving(BasePruner):
    """Successive halving that prunes nothing before `startup` trials have finished."""

    def __init__(self, pruner: Pruner):
        self._startup = pruner.startup
        self._halving = SuccessiveHalvingPruner(min_resource=max(pruner.warmup_steps, 1))

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to give the trial up; early trials are asked about too, lest later ones have no rivals."""
        is_worse = self._halving.prune(study, trial)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return is_worse and len(finished) >= self._startup


def _enough(trials: list[FrozenTrial]) -> bool:
    """Whether importance can be told: a few trials, and not all alike."""
    return len(trials) >= 4 and len({trial.value for trial in trials}) > 1


def _repair(file: Path) -> None:
    """Undo what a killed process left: a lock nobody holds (ours keeps others out), half a last line."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.exists():
        written = file.read_bytes()
        if not written.endswith(b"\n"):
            os.truncate(file, written.rfind(b"\n") + 1)
