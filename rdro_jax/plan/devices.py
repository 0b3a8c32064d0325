"""Devices to compile for that are not there: TPU slices by libtpu, GPUs by XLA's own description, simulated ones."""

import contextlib
import importlib.util
import math
import os
from typing import Any

import jax

from rdro_jax.errors import ConfigError
from rdro_jax.plan.topology import Topology

NOT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
"""libtpu asks the network what machine it is on, and wants to be alone on it, unless these say otherwise."""

GPU_DESCRIPTION = """
gpu_device_info {{
  name: "{name}" device_vendor: "NVIDIA Corporation" device_memory_size: {total} memory_bandwidth: {bandwidth}
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock} l2_cache_size: {cache}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_block} shared_memory_per_core: {shared_core}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: {links} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{name}"
"""
"""XLA's GpuTargetConfigProto, from which its GPU compiler works where there is no GPU."""

_HOPPER = {
    "major": 9, "cores": 132, "fpus": 128, "clock": 1.98, "cache": 52428800,
    "shared_block": 232448, "shared_core": 233472, "links": 18,
}  # fmt: skip
GPUS = {
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "total": 84933738496, "major": 8, "cores": 108, "fpus": 64, "clock": 1.41,
        "cache": 41943040, "shared_block": 166912, "shared_core": 167936, "links": 12,
    },
    "h100": {"name": "NVIDIA H100 80GB HBM3", "total": 84942979072, **_HOPPER},
    "h200": {"name": "NVIDIA H200", "total": 151397597184, **_HOPPER},
}  # fmt: skip
"""Source: NVIDIA's tuning guides of Ampere and Hopper, and the data sheets."""

GPUS_OF_A_NODE = 8
"""Joined by NVLink, and one process of jax here; more GPUs are nodes of so many."""


COMPILERS = {
    "tpu": ("libtpu", "pip install 'rdro_jax[plan]'"),
    "gpu": ("jax_plugins.xla_cuda13", "docs/scaling.md says how to"),
    "cpu": ("jaxlib", ""),
}
"""The package with each platform's compiler, and how it is installed."""


def missing_compiler(topology: Topology) -> str:
    """What to say and do where the compiler of the machine is not installed; nothing where it is."""
    package, what_to_do = COMPILERS[topology.platform]
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of what `package` lies in
        found = None
    return "" if found else f"--topology: {topology.name}: its compiler is not installed; {what_to_do}"


def make_devices(topology: Topology) -> list[Any]:
    """Devices of the machine to lower and compile for.

    Raises: ConfigError where the platform's compiler is not installed, or knows no such machine.
    """
    if missing := missing_compiler(topology):
        raise ConfigError(f"{missing}, or ask for --estimate, which needs none")
    return {"tpu": _tpu_devices, "gpu": _gpu_devices, "cpu": _cpu_devices}[topology.platform](topology)


def _cpu_devices(topology: Topology) -> list[Any]:
    with contextlib.suppress(RuntimeError):  # devices are there already, made by a caller or an earlier plan
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
    devices = jax.devices("cpu")
    if len(devices) < topology.num_devices:
        raise ConfigError(
            f"--topology: {topology.name}: this process simulates {len(devices)}; name it first, or alone"
        )
    return devices[: topology.num_devices]


def _tpu_devices(topology: Topology) -> list[Any]:
    for name, value in NOT_A_TPU.items():
        os.environ.setdefault(name, value)
    one = {"chips_per_host_bounds": [1, 1, 1]} if topology.num_devices == 1 else {}
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    return _described(topology, topology.slice_name, "tpu", **one, **several)


def _gpu_devices(topology: Topology) -> list[Any]:
    bandwidth = int(topology.device.bandwidth)
    text = GPU_DESCRIPTION.format(bandwidth=bandwidth, **GPUS[topology.kind])
    count = topology.num_devices
    a_node = count if count < GPUS_OF_A_NODE else math.gcd(count, GPUS_OF_A_NODE)
    return _described(topology, "", "cuda", topology=f"1x{count // a_node}x{a_node}", target_config=text)


def _described(machine: Topology, name: str, platform: str, **options: Any) -> list[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, platform=platform, **options).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--topology: {machine.name}: the compiler knows no such machine: {reason}") from None
