"""Processes find each other: what the environment tells, who is missing at the start, whose rows are whose."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from rdro_jax.errors import ConfigError, RestartWanted
from rdro_jax.parallel import MeshConfig, from_first, global_arrays, host_share, make_mesh, rows_sharding
from rdro_jax.parallel.cluster import Cluster, call_roll, find_cluster

SKYPILOT = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n", "SKYPILOT_NODE_RANK": "1"}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}


def test_what_is_given_comes_before_what_is_found(monkeypatch):
    assert find_cluster(GIVEN | SKYPILOT) == Cluster("a:1", 3, 2)
    assert find_cluster(SKYPILOT) == Cluster("10.0.0.1:8476", 2, 1, ("10.0.0.1", "10.0.0.2"))
    for name, value in SLURM.items():  # JAX reads the environment itself
        monkeypatch.setenv(name, value)
    found = find_cluster({})
    assert found is not None
    assert (found.coordinator.split(":")[0], found.num_processes, found.process_id) == ("node3", 2, 1)


def test_a_process_alone_is_no_cluster():
    assert find_cluster({}) is None
    assert find_cluster(GIVEN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert from_first(lambda: {"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES: got None; wanted a whole number"),
        (SKYPILOT | {"SKYPILOT_NODE_RANK": "x"}, "SKYPILOT_NODE_RANK: got 'x'"),
        (GIVEN | {"JAX_PROCESS_ID": "3"}, "this is process 3 of 3; wanted 0 to 2"),
        (GIVEN | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "listens at '10.0.0.1'; wanted host:port"),
    ],
)
def test_an_environment_that_contradicts_itself_is_a_config_error(environ, says):
    with pytest.raises(ConfigError, match=says):
        find_cluster(environ)


def free_address():
    with socket.create_server(("", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def roll(present, count, timeout, hosts=()):
    """What each of the present processes of a run hears."""
    address = free_address()

    def call(process):
        try:
            return call_roll(Cluster(address, count, process, hosts), timeout)
        except RestartWanted as stop:
            return str(stop)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, present))


def test_all_present():
    assert roll([2, 0, 1], 3, timeout=20) == [None, None, None]


def test_the_missing_are_named_to_all_that_came():
    heard = roll([0, 2], 4, timeout=1.5, hosts=("h0", "h1", "h2", "h3"))
    assert (
        heard
        == ["start: process 1 (h1), process 3 (h3) of 4 missing after 2 s; see why and start all processes again"] * 2
    )


@pytest.mark.parametrize("says", [b"GET / HTTP/1.1\r\n\r\n", b'{"process": 7}\n'], ids=["web", "another run"])
def test_a_stranger_on_the_port_is_not_counted(says):
    address = free_address()
    port = int(address.rpartition(":")[2])

    def talk():
        while True:
            try:
                with socket.create_connection(("localhost", port), 5) as stranger:
                    stranger.sendall(says)
                    return
            except OSError:
                continue

    stranger = threading.Thread(target=talk)
    stranger.start()
    start = time.monotonic()
    with pytest.raises(RestartWanted, match="process 1 of 2 missing"):
        call_roll(Cluster(address, 2, 0), 1.0)
    assert time.monotonic() - start >= 1
    stranger.join()


def test_the_first_one_missing(monkeypatch):
    monkeypatch.setattr("rdro_jax.parallel.cluster.ANSWER_SECONDS", 0.1)
    with pytest.raises(RestartWanted, match=r"process 0 missing at localhost:\d+"):
        call_roll(Cluster(free_address(), 2, 1), 0.5)


def test_rows_of_one_process_are_all_rows():
    sharding = rows_sharding(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert host_share(sharding) == (0, 1)
    rows = np.arange(24).reshape(8, 3)
    spread = global_arrays({"a": rows}, sharding)["a"]
    assert spread.sharding == sharding
    np.testing.assert_array_equal(spread, rows)


class OfProcess:
    """A sharding as another process sees it: only some of the devices are its own."""

    def __init__(self, sharding, devices):
        self.mesh, self._sharding, self._devices = sharding.mesh, sharding, devices

    def addressable_devices_indices_map(self, shape):
        return {d: at for d, at in self._sharding.devices_indices_map(shape).items() if d in self._devices}


@pytest.mark.parametrize(
    ("sizes", "mine", "share"),
    [
        (MeshConfig(data=8, fsdp=1), slice(4, 8), (1, 2)),
        (MeshConfig(data=2, fsdp=2, tensor=2), slice(2, 4), (1, 4)),
        (MeshConfig(data=1, fsdp=1, tensor=8), slice(4, 8), (0, 1)),  # tensor spans the processes: all have all rows
        (MeshConfig(data=8, fsdp=1), slice(0, 8, 2), (0, 1)),  # no contiguous part
    ],
)
def test_rows_of_one_process_among_others(sizes, mine, share):
    devices = jax.devices()[:8]
    sharding = rows_sharding(make_mesh(sizes, devices))
    in_order = list(np.ravel(sharding.mesh.devices))
    assert host_share(OfProcess(sharding, in_order[mine])) == share
