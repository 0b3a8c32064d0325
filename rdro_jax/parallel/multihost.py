"""Many processes as one: how they start, what the first does for all, how rows become global arrays, how they end."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding
from jaxtyping import Shaped

from rdro_jax.errors import EXIT_INTERNAL, EndedByFirst, RdroError
from rdro_jax.parallel.cluster import START_TIMEOUT, find_cluster, join

T = TypeVar("T")

PATIENCE = 24 * 3600
"""Seconds the others wait for what the first process does: tokenising data may take hours, and should it die, its
missing heartbeat ends them."""
LEAVE_SECONDS = 5.0
"""Seconds a process that ends by a fault waits for others that end by the same one."""
LAST_SECONDS = 0.5
"""Seconds by which the first process, to which JAX binds the others, outlives them."""
_rounds = count()


def initialize(timeout: float = START_TIMEOUT) -> None:
    """Make one run of the processes the environment tells of; nothing where this process is alone.

    To be called before anything else of JAX. From then on an exception that nobody catches ends the process at once,
    so that the others do not wait for it. Raises: as `cluster.find_cluster` and `cluster.call_roll`.
    """
    if jax.distributed.is_initialized():
        return
    cluster = find_cluster(os.environ)
    if cluster is None:
        return
    join(cluster, timeout)
    sys.excepthook = _die


def _die(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    traceback.print_exception(kind, error, trace)
    leave(EXIT_INTERNAL)


def leave(code: int, *, agreed: bool = False) -> int:
    """The exit code; of several processes, one ends at once unless all have `agreed` to end: those leave together.

    Python's ordinary end would wait for the others, who wait for this process in their next step. Those that meet the
    same fault end together, the first one last: JAX aborts whoever sees it go.
    """
    if agreed and jax.distributed.is_initialized():
        with suppress(jax.errors.JaxRuntimeError):  # one of them died on its way out: nothing is lost by that any more
            jax.distributed.shutdown()
    elif jax.distributed.is_initialized():
        assert global_state.client is not None, "there is one where JAX is initialised"
        with suppress(jax.errors.JaxRuntimeError):
            global_state.client.wait_at_barrier("rdro/leave", int(LEAVE_SECONDS * 1000))
        time.sleep(LAST_SECONDS if is_first() else 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_loss_of_peer(error: Exception) -> bool:
    """Whether an error says that another process is gone: JAX tells it as one of several kinds."""
    signs = ("gloo", "by peer", "coordination service", "heartbeat", "at barrier", "unavailable:", "nccl")
    return jax.distributed.is_initialized() and any(sign in str(error).lower() for sign in signs)


def is_first() -> bool:
    """Whether this process is the one that talks and writes. Does not start JAX' devices, as process_index does."""
    return global_state.process_id == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on the first process, as JSON brings it over; the others wait for it and call nothing.

    Raises: what it raises there, and on the others EndedByFirst.
    """
    client = global_state.client
    if client is None:
        return make()
    key = f"rdro/from_first/{next(_rounds)}"
    if not is_first():
        told = json.loads(client.blocking_key_value_get(key, PATIENCE * 1000))
        if "exit_code" in told:
            client.key_value_set(f"{key}/heard/{global_state.process_id}", "")
            raise EndedByFirst(told["exit_code"])
        return told["value"]
    try:
        value = make()
    except Exception as error:
        code = error.exit_code if isinstance(error, RdroError) else EXIT_INTERNAL
        client.key_value_set(key, json.dumps({"exit_code": code}))
        with suppress(jax.errors.JaxRuntimeError):  # one of them may be gone
            for other in range(1, global_state.num_processes):  # the news would end with this process
                client.blocking_key_value_get(f"{key}/heard/{other}", 10_000)
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def array_from_first(make: Callable[[], np.ndarray]) -> Shaped[np.ndarray, "..."]:
    """The array that `make` gives on the first process, on all of them. Raises: as `from_first`."""
    if not jax.distributed.is_initialized():
        return make()
    made: list[np.ndarray] = []

    def keep() -> tuple[list[int], str]:
        made.append(make())
        return list(made[0].shape), made[0].dtype.name

    shape, dtype = from_first(keep)
    return np.array(multihost_utils.broadcast_one_to_all(made[0] if made else np.empty(shape, dtype)))  # to write to


def host_share(sharding: NamedSharding) -> tuple[int, int]:
    """Which part of the rows this process' devices hold: (index, number of parts), for `global_arrays`.

    (0, 1), all rows, where its devices hold no contiguous part, as a physical topology may want it.
    """
    shards = sharding.mesh.shape["data"] * sharding.mesh.shape["fsdp"]
    mine = sorted({(at[0].start or 0) for at in sharding.addressable_devices_indices_map((shards,)).values() if at})
    size = len(mine)
    if mine != [*range(mine[0], mine[0] + size)] or mine[0] % size or shards % size:
        return 0, 1
    return mine[0] // size, shards // size


def global_arrays(local: Any, sharding: NamedSharding) -> Any:
    """Tree of global arrays from each process' part of the rows, the one that `host_share` names."""
    index, parts = host_share(sharding)

    def spread(x: Any) -> jax.Array:
        offset, rows = index * len(x), parts * len(x)

        def part(at: tuple[slice, ...] | None) -> Any:
            first, *rest = at or (slice(None),)
            start, stop, _ = first.indices(rows)
            return x[(slice(start - offset, stop - offset), *rest)]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(spread, local)


def shard_rows(whole: Any, sharding: Sharding) -> Any:
    """Tree of global arrays of which every process has the whole."""
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda at: x[at]), whole)
