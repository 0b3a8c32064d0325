"""What a person would submit: templates filled in for a cluster and a run."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined

from rdro_jax.config import Cluster, load_cluster, load_config
from rdro_jax.config.document import read_document
from rdro_jax.config.loader import read_text
from rdro_jax.data.config import sources_of
from rdro_jax.errors import ConfigError
from rdro_jax.hub import HUB
from rdro_jax.sweep.elsewhere import secret_words
from rdro_jax.sweep.points import dry_run
from rdro_jax.sweep.spec import load_sweep, named_cluster

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT_CLUSTERS = {"slurm": "slurm", "gke": "gke-tpu", "sky": "sky", "tpu-vm": "tpu-vm"}
"""Cluster file below configs/clusters that an engine takes where none is named."""
FILES = {
    "slurm": ("train.sbatch",),
    "gke": ("jobset.yaml",),
    "sky": ("task.yaml",),
    "tpu-vm": ("create.sh", "start.sh", "run.sh", "delete.sh"),
}
SWEEP_FILES = {"slurm": ("sweep_array.sbatch",), "sky": ("sweep_trial.yaml",)}
SHIPS = ("sky", "tpu-vm")
"""Engines whose machines get a copy of the working directory."""
SUBMIT = {
    "slurm": ("sbatch", "{}"),
    # A JobSet that ended keeps its name, and applying it again changes nothing: launched again, a run goes on.
    "gke": ("kubectl", "replace", "--force", "-f", "{}"),
    "sky": ("sky", "jobs", "launch", "--yes", "{}"),
    "tpu-vm": ("bash", "{}"),
}


class Job(NamedTuple):
    """A run, or a sweep, as a launcher sees it."""

    label: str
    """Its name, in what all schedulers take: a-z, 0-9 and dashes."""
    command: str
    """What its machines run, quoted for a shell."""
    output_dir: str
    count: int = 1
    """Runs of a sweep."""
    settings: tuple[str, ...] = ()
    """Of the cluster, to be put before the words of each run of a sweep; a single run's command has them."""


def render(engine: str, cluster: Cluster, job: Job, *, sweep: bool = False) -> dict[str, str]:
    """File name -> text, for the cluster's engine. Raises: ConfigError where an engine has no files for a sweep."""
    names = (SWEEP_FILES if sweep else FILES).get(engine)
    if names is None:
        raise ConfigError(f"launch {engine}: no sweeps there; wanted {' or '.join(SWEEP_FILES)}, or a run's config")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"sh": shlex.quote, "yaml": _yaml_text}
    folder = TEMPLATES / engine.replace("-", "_")
    values: dict[str, Any] = {"cluster": cluster, "job": job}
    return {name: environment.from_string((folder / f"{name}.j2").read_text()).render(**values) for name in names}


def launch(
    engine: str, config: str, overrides: list[str], *, cluster_file: str | None, dry_run: bool
) -> dict[Path, str] | list[str]:
    """With `dry_run` the files that would be submitted; else submits them and returns the command that did.

    Raises: ConfigError for the config, the cluster file, or what the engine's own command says.
    """
    sweep = "space" in read_document(read_text(Path(config)), config).values
    file = cluster_file or (named_cluster(load_sweep(config).sweep.executor) if sweep else None)
    file = file or f"configs/clusters/{DEFAULT_CLUSTERS[engine]}.yaml"
    cluster = load_cluster(file)
    if cluster.name != engine:
        raise ConfigError(f"{file}: cluster.name: got '{cluster.name}'; wanted '{engine}', as on the command line")
    job = sweep_job(config, overrides, cluster) if sweep else run_job(config, [*cluster.settings, *overrides])
    if sweep and engine == "sky" and not dry_run:
        raise ConfigError("launch sky: 'rdro sweep' launches the trials of a sweep; --dry-run prints their task")
    home = Path(job.output_dir) / "launch"
    files = {home / name: text for name, text in render(engine, cluster, job, sweep=sweep).items()}
    if dry_run:
        return files
    if engine in SHIPS and not sweep:
        check_shipped(config, [*cluster.settings, *overrides])
    home.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        path.write_text(text)
    first = next(iter(files))
    command = [word.format(first) for word in SUBMIT[engine]]
    return _submit([*command, *(secret_words(first) if engine == "sky" else [])])


def run_job(config: str, overrides: list[str]) -> Job:
    """The job of one run, its config checked before anything is paid for. Raises: ConfigError."""
    output_dir = load_config(config, overrides).output_dir
    if any("\n" in word for word in (config, *overrides)):
        raise ConfigError("command line: got a line break; launchers take one line")
    return Job(_label(output_dir), shlex.join(["rdro", "train", config, *overrides]), output_dir)


def check_shipped(config_file: str, overrides: list[str]) -> None:
    """See that all a run reads goes along with the working directory. Raises: ConfigError for what does not."""
    config = load_config(config_file, overrides)
    paths = [("config", config_file), ("model.path", config.model.path), ("reference.path", config.reference.path)]
    for key, sources in (("data.train", config.data.train), ("data.eval", config.data.eval or ())):
        paths += [(key, source.path) for source in sources_of(sources)]
    for key, path in paths:
        if path is None or path.startswith(HUB) or Path(path).parts[:1] == ("runs",):  # runs/ is the bucket
            continue
        wanted = f"{key}: '{path}' does not reach the machines"
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ConfigError(f"{wanted}: wanted a path below the working directory, or runs/ of the bucket")
        if not Path(path).exists():
            raise ConfigError(f"{wanted}: it is not there")
        if subprocess.run(["git", "check-ignore", "--quiet", path], capture_output=True, check=False).returncode == 0:
            raise ConfigError(f"{wanted}: git ignores it; take it out of .gitignore, or use runs/ of the bucket")


def sweep_job(file: str, overrides: list[str], cluster: Cluster) -> Job:
    """The job of a sweep whose points are known beforehand. Raises: ConfigError, also for settings of the cluster."""
    if overrides:
        raise ConfigError(f"command line: got {overrides[0]}; a sweep's keys stand in its file")
    loaded = load_sweep(file)
    if loaded.settings not in ((), cluster.settings):
        named = named_cluster(loaded.sweep.executor)
        raise ConfigError(f"{file}: executor.cluster: the settings of {named} would win; name that file, or none there")
    lines = list(dry_run(file))
    if lines[-1].startswith("#"):
        raise ConfigError(f"{file}: sampler.name: its later points depend on results; run it by 'rdro sweep'")
    for _, _, config, *words in map(shlex.split, lines):
        load_config(config, [*cluster.settings, *words])
    folder = str(loaded.folder)
    command = shlex.join(["rdro", "sweep", file, "--dry-run"])
    return Job(_label(folder), command, folder, len(lines), () if loaded.settings else cluster.settings)


def _submit(command: list[str]) -> list[str]:
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise ConfigError(
            f"launch: no command '{command[0]}' on this machine; launch/README.md says what to install"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"launch: '{shlex.join(command)}' ended with code {error.returncode}") from None
    return command


def _label(output_dir: str) -> str:
    """The last part of a path, as Kubernetes takes names."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(output_dir).name.lower()).strip("-")[:30].strip("-")
    return f"rdro-{words}" if words else "rdro"


def _yaml_text(value: str) -> str:
    """A string as one line of YAML, quoted."""
    return yaml.safe_dump(value, default_style='"', width=10**9, allow_unicode=True).strip()
