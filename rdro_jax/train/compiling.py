"""Programs compiled once: the step ahead of time, and all of them kept for later runs."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from rdro_jax.batch import Batch
from rdro_jax.config import Config
from rdro_jax.data import Loader
from rdro_jax.losses import Loss
from rdro_jax.parallel import global_arrays, rows_sharding
from rdro_jax.train.console import say
from rdro_jax.train.policy import Policy
from rdro_jax.train.program import lower_step, step_scalars
from rdro_jax.train.state import TrainState

CACHE_BYTES = 4 << 30
"""Most that compiled programs take up; those not used for longest are dropped first."""
CACHE_HIT = "/jax/compilation_cache/cache_hits"
"""What jax calls the event that a compiled program was found."""


def keep_programs(folder: str | None) -> None:
    """From now on look for compiled programs in `folder`, and keep new ones there; None keeps none.

    Where JAX_COMPILATION_CACHE_DIR is set, that is used whatever `folder` is.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = None if folder is None else str(Path(folder).expanduser() / _processor())
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def _processor() -> str:
    """A name of this kind of processor: a home may be shared by machines that do not know each other's instructions."""
    # JAX's own key tells accelerators apart, but not the processors that XLA compiles for.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return f"{platform.machine()}-{hashlib.sha256(repr(features).encode()).hexdigest()[:12]}"


def compile_step(
    config: Config,
    policy: Policy,
    loss: Loss,
    num_steps: int,
    state: TrainState,
    loader: Loader,
) -> Callable[[TrainState, Batch], tuple[TrainState, Any]]:
    """The step on batches that are on the devices, compiled: a wrong shape raises, and no call can compile again."""
    batch = global_arrays(loader[0][0], rows_sharding(policy.mesh))
    start = time.monotonic()
    lowered = lower_step(config, policy, loss, num_steps, state, batch)
    with _cache_hits() as found:
        compiled = lowered.compile()
    told = "found the compiled step in the cache" if found else "compiled the step"
    say(f"{told} in {time.monotonic() - start:.1f} s")
    scalars = step_scalars(config, policy, loss)
    return lambda state, batch: compiled(state, batch, scalars)


@contextmanager
def _cache_hits() -> Iterator[list[str]]:
    """While it is open, a list that grows by one for each compiled program that jax finds in its cache."""
    found: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == CACHE_HIT:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)
