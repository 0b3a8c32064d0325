"""How the processes of a run find each other: who they are, a roll call that names the missing, then JAX."""

import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv  # JAX has no public way to ask what it would detect

from rdro_jax.errors import ConfigError, RestartWanted

SKYPILOT_PORT = 8476
START_TIMEOUT = 300.0
"""Seconds the processes of a run wait for each other at the start."""
HEARTBEAT_TIMEOUT = 25
"""Seconds after which a process that no longer answers is given up: JAX then ends the others with SIGABRT (134)."""
ANSWER_SECONDS = 10.0
"""Grace in which the first process' answer reaches the others."""


class Cluster(NamedTuple):
    """One process among those of a run."""

    coordinator: str
    """host:port at which the first process listens."""
    num_processes: int
    process_id: int
    hosts: tuple[str, ...] = ()
    """Addresses by process, where they are known."""
    local_device_ids: tuple[int, ...] | None = None
    """The devices of this host that are this process'; None is all of them."""

    def name(self, process: int) -> str:
        """A process as a message calls it."""
        return f"process {process} ({self.hosts[process]})" if self.hosts else f"process {process}"


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
    """The cluster the environment tells of; None where this process is alone.

    Looked for in this order: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; SKYPILOT_NODE_IPS with
    SKYPILOT_NODE_RANK; what JAX itself detects (SLURM, GKE, TPU VMs, MPI).

    Raises: ConfigError where the variables are incomplete or contradict each other.

    >>> find_cluster({"SKYPILOT_NODE_IPS": "10.0.0.1\\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"})[:4]
    ('10.0.0.1:8476', 2, 1, ('10.0.0.1', '10.0.0.2'))
    """
    if "JAX_COORDINATOR_ADDRESS" in environ:
        count, rank = _number(environ, "JAX_NUM_PROCESSES"), _number(environ, "JAX_PROCESS_ID")
        cluster = Cluster(environ["JAX_COORDINATOR_ADDRESS"], count, rank)
    elif environ.get("SKYPILOT_NODE_IPS"):
        hosts = tuple(environ["SKYPILOT_NODE_IPS"].split())
        rank = _number(environ, "SKYPILOT_NODE_RANK")
        cluster = Cluster(f"{hosts[0]}:{SKYPILOT_PORT}", len(hosts), rank, hosts)
    else:
        address, count, rank, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(START_TIMEOUT)
        )
        if address is None or count is None or rank is None:
            return None
        cluster = Cluster(address, count, rank, (), None if devices is None else tuple(devices))
    if not cluster.coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"environment: the first process listens at {cluster.coordinator!r}; wanted host:port")
    if not 0 <= cluster.process_id < cluster.num_processes:
        raise ConfigError(
            f"environment: this is process {cluster.process_id} of {cluster.num_processes}; wanted 0 to "
            f"{cluster.num_processes - 1}"
        )
    return cluster if cluster.num_processes > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int:
    if not environ.get(name, "").isdecimal():
        raise ConfigError(f"environment: {name}: got {environ.get(name)!r}; wanted a whole number")
    return int(environ[name])


def join(cluster: Cluster, timeout: float = START_TIMEOUT) -> None:
    """Wait for all processes of the cluster and make JAX one over them. Raises: as `call_roll`."""
    call_roll(cluster, timeout)
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        local_device_ids=cluster.local_device_ids,
        cluster_detection_method="deactivate",  # it would overrule what is given
        initialization_timeout=int(timeout),
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=2 * HEARTBEAT_TIMEOUT,
    )


def call_roll(cluster: Cluster, timeout: float = START_TIMEOUT) -> None:
    """Return when all processes of the cluster have answered each other.

    JAX's own start ends every process with SIGABRT after its timeout and does not say who was missing.

    Raises: RestartWanted after `timeout` seconds, naming those that are missing.
    """
    verdict = _listen(cluster, timeout) if cluster.process_id == 0 else _report(cluster, timeout + ANSWER_SECONDS)
    if verdict:
        raise RestartWanted(f"start: {verdict} after {timeout:.0f} s; see why and start all processes again")


def _listen(cluster: Cluster, timeout: float) -> str:
    """The first process' part: wait for the others, tell them the verdict, which is empty when all are there."""
    deadline, present, wanted = time.monotonic() + timeout, {}, {*range(1, cluster.num_processes)}
    port = int(cluster.coordinator.rpartition(":")[2])
    try:
        server = socket.create_server(("", port), backlog=cluster.num_processes)
    except OSError as error:
        raise ConfigError(f"start: port {port} of this host cannot be used ({error.strerror}); name another") from error
    with server:
        while wanted - {*present} and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(ANSWER_SECONDS)
                present[json.loads(connection.makefile().readline(1000))["process"]] = connection
            except (OSError, ValueError, KeyError, TypeError):  # nobody came, or a stranger did
                continue
        missing = sorted(wanted - {*present})
        verdict = f"{', '.join(map(cluster.name, missing))} of {cluster.num_processes} missing" if missing else ""
        for connection in present.values():
            with connection:
                connection.sendall((json.dumps(verdict) + "\n").encode())
    return verdict


def _report(cluster: Cluster, timeout: float) -> str:
    """The part of every other process: say that it is there, hear the verdict."""
    deadline = time.monotonic() + timeout
    host, _, port = cluster.coordinator.rpartition(":")
    here = json.dumps({"process": cluster.process_id, "host": platform.node(), "pid": os.getpid()})
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), left) as connection:
                connection.sendall((here + "\n").encode())
                return json.loads(connection.makefile().readline())
        except (OSError, ValueError):
            time.sleep(0.2)
    return f"{cluster.name(0)} missing at {cluster.coordinator}"
