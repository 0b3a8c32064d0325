"""The sweep file: one YAML mapping -> a checked `Sweep`. Its fields are the documentation of its keys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from rdro_jax.config import Config, load_cluster, load_config
from rdro_jax.config.document import Layer, read_document
from rdro_jax.config.explain import explain, place_of
from rdro_jax.config.loader import read_text
from rdro_jax.config.schema import Name
from rdro_jax.errors import ConfigError
from rdro_jax.losses import Loss
from rdro_jax.run_files import dotted
from rdro_jax.sweep.space import Domain, Point, Space, read_space

TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Chips of a slot -> how they lie on the board, as libtpu is told."""
LOSSES = tuple(kind.name for kind in get_args(Loss))
BASE = "base"
"""The axis of a sweep over several configs."""


@dataclass(frozen=True)
class Sampler:
    """Which points are tried."""

    name: Literal["grid", "random", "qmc", "tpe"] = "tpe"
    """grid: every point once; random; qmc: a scrambled Sobol sequence; tpe: Bayesian, after `startup` random ones."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the points: point n is a function of it and n, whether or not the sweep was stopped before."""
    startup: PositiveInt = 10
    """Random points before tpe models the objective."""


@dataclass(frozen=True)
class Objective:
    """What a good trial is."""

    metric: str = "eval_loss"
    """A metric of `result.json`, as `metrics.jsonl` names it."""
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Pruner:
    """When a trial is given up early; looked at on the trial's first seed, other seeds follow if it passes."""

    name: Literal["median", "halving"] = "median"
    """median: worse than the median of earlier trials at that step; halving: asynchronous successive halving."""
    metric: str | None = None
    """Metric of `metrics.jsonl` that is compared; null is the objective's."""
    direction: Literal["minimize", "maximize"] | None = None
    """Of that metric; null is the objective's."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps before which nothing is pruned."""
    startup: Annotated[int, Field(ge=0)] = 5
    """Trials that finish before anything is pruned."""


@dataclass(frozen=True)
class Local:
    """Trials are processes of this machine."""

    name: Literal["local"] = "local"
    accelerator: Literal["none", "gpu", "tpu"] = "none"
    """Kind of device that is dealt out to the slots; none leaves it to JAX."""
    devices_per_trial: PositiveInt = 1
    """Devices of one slot; slot k has the k-th so many."""
    stop_seconds: PositiveInt = 60
    """Time a trial has to save its state when the sweep is stopped, before it is killed."""


@dataclass(frozen=True)
class Slurm:
    """Trials are SLURM jobs, submitted by submitit; `parallel` is the number of jobs at a time."""

    name: Literal["slurm"]
    timeout_min: PositiveInt = 60
    """Time limit of a job, in minutes; what is not finished by then is requeued."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further parameters of submitit's SLURM executor: slurm_partition, slurm_gres, slurm_account, mem_gb, ..."""
    cluster: Name | None = None
    """Cluster file, such as configs/clusters/slurm.yaml, whose `settings` every run begins with; null is none."""


@dataclass(frozen=True)
class Sky:
    """Trials are managed jobs of SkyPilot, restarted where a spot machine is taken away."""

    name: Literal["sky"]
    task: Name
    """SkyPilot task file, such as launch/skypilot/sweep_trial.yaml; it runs $RDRO_COMMAND on a mounted `output_dir`."""
    cluster: Name | None = None
    """Cluster file, such as configs/clusters/sky.yaml, whose `settings` every run begins with; null is none."""


class Sweep(BaseModel):
    """A whole sweep; paths but `base` are read from the working directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    base: Name | tuple[Name, ...]
    """Config of every trial, relative to the sweep file; a list of them is an axis of the space, called `base`."""
    output_dir: Name
    """Folder of the sweep; the same folder again resumes it."""
    set: dict[str, Any] = {}
    """Keys of the config that every trial has in another way than `base`, nested as there."""
    space: dict[str, Any]
    """Keys of the config that trials differ in: choice, range or log; under `loss`, each loss may have its own."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = ()
    """Each point is run with each of these as `seed`; its value is their mean, with a confidence interval."""
    objective: Objective = Objective()
    """What a good trial is."""
    sampler: Sampler = Sampler()
    """Which points are tried."""
    trials: PositiveInt | None = None
    """Points to try; a grid has as many as it has."""
    parallel: PositiveInt = 1
    """Runs at a time."""
    pruner: Pruner | None = None
    """When a trial is given up early; null is never."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times a run is started again after its process died by a signal; codes 2 to 6 and 70 are never restarted."""
    executor: Annotated[Local | Slurm | Sky, Field(discriminator="name")] = Local()
    """Where trials run."""

    @model_validator(mode="after")
    def _keys_agree(self) -> "Sweep":
        if self.sampler.name == "grid" and self.trials is not None:
            raise ConfigError("trials: a grid has as many as it has points; drop the key")
        if self.sampler.name != "grid" and self.trials is None:
            raise ConfigError(f"trials: missing; wanted the number of points that '{self.sampler.name}' may try")
        if len({*self.seeds}) < len(self.seeds):
            raise ConfigError(f"seeds: got {list(self.seeds)}; wanted each seed once")
        if isinstance(self.executor, Local) and self.executor.accelerator == "tpu":
            count = self.executor.devices_per_trial
            if count not in TPU_BOUNDS:
                raise ConfigError(f"executor.devices_per_trial: got {count}; TPU chips are dealt out by 1, 2, 4 or 8")
        return self


MAY_CHANGE = ("trials", "parallel", "restarts", "executor")
"""Keys that a resumed sweep may have in another way: they decide no trial's numbers."""


@dataclass(frozen=True, eq=False)
class LoadedSweep:
    """A sweep file, read and checked."""

    sweep: Sweep
    space: Space
    home: Path
    """Folder of the sweep file."""
    fixed: Point
    """Dotted keys of `set`, and what all trials share."""
    settings: tuple[str, ...] = ()
    """`key=value` words for the machine, which those of the sweep win over."""

    @property
    def folder(self) -> Path:
        """Folder of the sweep."""
        return Path(self.sweep.output_dir)

    @property
    def planned(self) -> int:
        """Points the sweep is to try."""
        return self.sweep.trials or len(self.space.grid())

    def config_file(self, point: Point) -> Path:
        """The file that a run at `point` starts from."""
        return self.home / point.get(BASE, self.sweep.base)

    def bases(self) -> list[Config]:
        """A config for each file that `base` names. Raises: ConfigError."""
        first = {point.get(BASE): point for point in reversed([*self.space.probes()])}
        return [self.config(point) for point in reversed(first.values())]

    def overrides(self, point: Point, output_dir: Path) -> list[str]:
        """`key=value` arguments of a run at `point` in `output_dir`."""
        # JSON is YAML, and tells "1" from 1.
        values = {key: value for key, value in (self.fixed | point).items() if key != BASE}
        # A section's name first: where it is another than base's, it drops the section's keys before it.
        values = dict(sorted(values.items(), key=lambda item: not item[0].endswith(".name")))
        values["output_dir"] = str(output_dir)
        return [*self.settings, *(f"{key}={json.dumps(value)}" for key, value in values.items())]

    def config(self, point: Point, output_dir: Path | None = None) -> Config:
        """Config of a run at `point`. Raises: ConfigError."""
        return load_config(
            self.config_file(point), self.overrides(point, output_dir or self.folder / "trials" / "0000")
        )


def load_sweep(path: str | Path) -> LoadedSweep:
    """The sweep that the file at `path` describes, every key of it checked against the config's schema.

    Raises: ConfigError, one line with file and line, dotted key, what was got and what is wanted.
    """
    layer = read_document(read_text(Path(path)), str(path))
    try:
        sweep = Sweep.model_validate_json(json.dumps(layer.values))
    except ValidationError as error:
        raise ConfigError(explain(error, Sweep, layer.values, layer.places, str(path))) from error
    except ConfigError as error:
        raise ConfigError(_placed(layer, str(error), str(path))) from error
    try:
        space = read_space(sweep.space, LOSSES)
        if BASE in space.common:
            raise ConfigError("space.base: no key of a config; several configs to start from are a list in 'base'")
        if isinstance(sweep.base, tuple):
            space.common[BASE] = Domain("choice", sweep.base)
        if sweep.sampler.name == "grid":
            space.grid()
        elif sweep.sampler.name != "tpe" and space.size is not None and (sweep.trials or 0) > space.size:
            raise ConfigError(f"trials: got {sweep.trials}; the space has {space.size} points, and none is tried twice")
        _check_apart(sweep, space)
    except ConfigError as error:
        raise ConfigError(_placed(layer, str(error), str(path))) from error
    settings = _settings(sweep, layer, str(path))
    loaded = LoadedSweep(sweep, space, Path(path).parent, dotted(sweep.set), settings)
    _check_points(loaded, layer, str(path))
    return replace(loaded, fixed=_shared(loaded) | loaded.fixed)


def named_cluster(executor: Local | Slurm | Sky) -> str | None:
    """The cluster file that an executor names."""
    return None if isinstance(executor, Local) else executor.cluster


def _settings(sweep: Sweep, layer: Layer, path: str) -> tuple[str, ...]:
    """Words that the cluster file of the executor puts first. Raises: ConfigError for a file of another engine."""
    file, engine = named_cluster(sweep.executor), sweep.executor.name
    if file is None:
        return ()
    cluster = load_cluster(file)
    if cluster.name != engine:
        wrong = f"executor.cluster: {file} is for '{cluster.name}'; wanted one for '{engine}', as executor.name says"
        raise ConfigError(_placed(layer, wrong, path))
    return cluster.settings


def _check_apart(sweep: Sweep, space: Space) -> None:
    """Raise ConfigError where two parts of the sweep file set one key, or set what the sweep sets itself."""
    keys = [*space.common, *(key for own in space.losses.values() for key in own)]
    if sweep.seeds and "seed" in keys:
        raise ConfigError("seeds: 'seed' is a key of the space too; keep one of the two")
    for section, used in (("space", keys), ("set", dotted(sweep.set))):
        if "output_dir" in used:
            raise ConfigError(f"{section}.output_dir: each run gets a folder of its own below the sweep's")
    for key in dotted(sweep.set):
        if key in keys:
            raise ConfigError(f"set.{key}: a key of the space too; keep one of the two")


def _shared(loaded: LoadedSweep) -> Point:
    """Prepared data and reference log-probs in folders that all runs share, unless the config names others."""
    config = loaded.config(next(loaded.space.probes()))
    own = {"data.prepared": config.data.prepared, "reference.store": config.reference.store}
    keys = [key for key, value in own.items() if value is None and key not in loaded.space.common]
    return {key: str(loaded.folder / key.replace(".", "_")) for key in keys}


def _check_points(loaded: LoadedSweep, layer: Layer, path: str) -> None:
    """Raise ConfigError unless every key and value of the sweep makes a config, before trial 0."""
    for point in loaded.space.probes():
        try:
            config = loaded.config(point)
        except ConfigError as error:
            raise ConfigError(_blame(loaded, layer, str(error), path, point)) from error
        metric = loaded.sweep.objective.metric
        if metric.startswith("eval_") and config.data.eval is None and not config.data.heldout_fraction:
            where = layer.places.get("objective.metric", path)
            raise ConfigError(f"{where}: objective.metric: '{metric}' needs held-out rows; set data.eval in 'set'")
        if config.checkpoint.mirror is not None:
            raise ConfigError(f"{path}: checkpoint.mirror: its runs would share one copy; set it to null in 'set'")


def _blame(loaded: LoadedSweep, layer: Layer, message: str, path: str, point: Point) -> str:
    """A fault of `load_config`, in terms of the line of the sweep file that set the key."""
    place, _, rest = message.partition(": ")
    if place != "command line":
        return message
    key = rest.partition(":")[0]
    loss = point.get("loss.name", "")
    own = loss and key in loaded.space.losses.get(loss, {})
    places = [f"space.loss.{loss}{key.removeprefix('loss')}" if own else f"space.{key}", f"set.{key}"]
    if any(word.startswith(f"{key}=") for word in loaded.settings):
        path = f"{named_cluster(loaded.sweep.executor)}: settings"
    at = next((place_of(name, layer.places, "") for name in places if name in layer.places), path)
    return f"{at}: {rest}"


def _placed(layer: Layer, message: str, path: str) -> str:
    return f"{place_of(message.partition(':')[0], layer.places, path)}: {message}"


def differences(before: Point, now: Point, most: int = 6) -> Sequence[str]:
    """`key was X, is Y` of the keys that differ."""
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    told = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:most]]
    return [*told, f"and {len(changed) - most} more"] if len(changed) > most else told
