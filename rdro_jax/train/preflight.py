"""What can be asked before a model is loaded: seconds, instead of a fault an hour into a rented accelerator."""

import errno
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from packaging.requirements import Requirement

from rdro_jax.checkpoint import list_steps
from rdro_jax.config import Config, check_data, check_models
from rdro_jax.errors import ConfigError, RdroError, StorageError
from rdro_jax.models import abstract_params
from rdro_jax.optim import make_optimizer
from rdro_jax.parallel import check_row_length, check_rows, make_mesh
from rdro_jax.parallel.hardware import GIB
from rdro_jax.train.policy import Policy, make_policy
from rdro_jax.train.program import abstract_state
from rdro_jax.train.state import state_items

TOKENS = ("HF_TOKEN", "WANDB_API_KEY")
"""Environment variables that hold secrets: whether they are there is told, never what they hold."""


OVERSHOOT = 1.1
"""How far an estimate may be above what a run takes (`tests/plan/test_estimate.py`): no fault until there."""


class Finding(NamedTuple):
    """What one question was answered with."""

    question: str
    answer: str
    fault: RdroError | None = None
    """What a run would end with."""
    warning: bool = False


def examine(config: Config | None, bytes_needed: Callable[[Config, Policy], int] | None = None) -> Iterator[Finding]:
    """Answers about this installation and, with a config, about the run it describes; none loads a model.

    `bytes_needed` estimates the memory of one device, in bytes, which is then compared with what the device has.
    """
    yield _ask("versions", check_versions)
    yield _ask("devices", _devices)
    yield _ask("secrets", _secrets)
    if config is None:
        return
    yield _ask("model", lambda: (check_models(config), config.model.path)[1])
    yield _ask("data", lambda: (check_data(config), str(config.data.train))[1])
    made: list[Policy] = []
    make = lambda: made.append(make_policy(config.model.path, make_mesh(config.mesh), config.model))  # noqa: E731
    yield _ask("layout", lambda: (make(), layout(config, made[0]))[1])
    if made:
        yield _ask("memory", lambda: _memory(bytes_needed(config, made[0]) if bytes_needed else None))
        yield _ask("run folder", lambda: check_space(config, made[0]))


def _ask(question: str, check: Callable[[], str]) -> Finding:
    try:
        answer = check()
        return Finding(question, answer, warning=answer.startswith("warning: "))
    except RdroError as fault:
        return Finding(question, str(fault), fault)


def check_versions() -> str:
    """The packages this one was tested with, and a warning where an installed one is none of those."""
    wanted = [Requirement(text) for text in importlib.metadata.requires("rdro_jax") or []]
    # Those of an extra hold with it alone; those of another Python not here.
    own = [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    other = []
    for need in own:
        found = importlib.metadata.version(need.name)
        if not need.specifier.contains(found, prereleases=True):
            other.append(f"{need.name} {found} (tested: {need.specifier})")
    jaxes = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "optax"))
    return f"warning: not tested: {', '.join(other)}" if other else f"{len(own)} packages as tested: {jaxes}, ..."


def _devices() -> str:
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in jax.devices()})
    return f"{len(jax.devices())} x {', '.join(kinds)} in {jax.process_count()} processes"


def _secrets() -> str:
    return ", ".join(f"{name} {'is set' if os.environ.get(name) else 'is not set'}" for name in TOKENS)


def _memory(needed: int | None) -> str:
    """Raises: ConfigError where a device has less than what is needed, a tenth aside."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    has = f"{limit / GIB:.1f} GiB per device" if limit else "the device does not tell how much it has"
    if needed is None:
        return has
    if limit and needed > OVERSHOOT * limit:
        raise ConfigError(
            f"mesh: a step needs about {needed / GIB:.1f} GiB of each device, which has {limit / GIB:.1f}; use more "
            "devices, more num_microbatches or a shorter data.max_length"
        )
    tight = "warning: tight: " if limit and needed > limit else ""
    return f"{tight}about {needed / GIB:.1f} GiB needed; {has}"


def layout(config: Config, policy: Policy) -> str:
    """How a step lies on the devices. Raises: ConfigError where it does not."""
    mesh, rows, parts = policy.mesh, config.global_batch_size, config.num_microbatches
    check_rows(mesh, rows, parts)
    check_row_length(mesh, config.data.max_length)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"{axes} = {mesh.size} devices in {jax.process_count()} processes; {rows} rows x {config.data.max_length} "
        f"tokens a step: {rows // shards // parts} a device in each of {parts} micro-batches"
    )


def check_space(config: Config, policy: Policy) -> str:
    """The room a run's checkpoints need, and that it is there. Raises: StorageError where not, or not writable."""
    folder = Path(config.output_dir).absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        reason = errno.EACCES if place.is_dir() else errno.EEXIST if place == folder else errno.ENOTDIR
        raise StorageError(f"output_dir: {folder}: {os.strerror(reason)}; wanted a folder that can be written")
    more, needed = _bytes_on_disk(config, policy)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"output_dir: {place} has {free / GIB:.1f} GiB free; the run needs {needed / GIB:.1f}: "
            f"{more} checkpoints more and the model; free space, or name another folder"
        )
    return f"{folder}: needs {needed / GIB:.2f} GiB of {free / GIB:.1f} free"


def _bytes_on_disk(config: Config, policy: Policy) -> tuple[int, int]:
    """The most checkpoints a run adds to those in its folder, and bytes of them and of the model at its end.

    At once there are the newest, the best where one is kept, and the one being written.
    """
    most = config.checkpoint.save_total_limit + (config.checkpoint.metric_for_best_model is not None) + 1
    more = max(1, most - len(list_steps(Path(config.output_dir))))
    state = abstract_state(config, policy, config.loss, make_optimizer(config.optimizer, 1))
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
    return more, more * size(state_items(state)) + size(abstract_params(policy.model, dtype=config.model.dtype))
