"""Machines to plan for, by name: what one device is, and how many there are."""

import math
import re
from typing import Literal, NamedTuple

from rdro_jax.errors import ConfigError

GIB = 2**30


class Device(NamedTuple):
    """One device as jax counts them, with published figures."""

    memory: float
    """Bytes a program may use."""
    flops: float
    """Peak of matrix products in bfloat16, per second, without sparsity."""
    bandwidth: float
    """Bytes per second between the device and its memory."""
    links: float
    """Bytes per second a device sends to its peers, over all its links."""
    axes: int = 1
    """Numbers in the shape of a slice."""
    per_chip: int = 1
    """Devices of one chip."""


DEVICES = {
    "v5e": Device(15.75 * GIB, 197e12, 819e9, 200e9, axes=2),
    "v5p": Device(95.74 * GIB, 459e12, 2765e9, 600e9, axes=3),
    "v6e": Device(31.25 * GIB, 918e12, 1638e9, 400e9, axes=2),
    "tpu7x": Device(94.75 * GIB, 1153.5e12, 3690e9, 300e9, axes=3, per_chip=2),
    "a100": Device(0.75 * 79.1 * GIB, 312e12, 2039e9, 300e9),
    "h100": Device(0.75 * 79.1 * GIB, 989e12, 3352e9, 450e9),
    "h200": Device(0.75 * 141.0 * GIB, 989e12, 4800e9, 450e9),
    "cpu": Device(math.inf, math.nan, math.nan, math.nan),
}
"""Source of TPUs: docs.cloud.google.com/tpu/docs, pages v5e, v5p, v6e and tpu7x, links half of "bidirectional"; memory
is what libtpu 0.0.42 leaves to a program. Of GPUs: NVIDIA's data sheets of the SXM modules (80, 80 and 141 GB); memory
is the three quarters that jax takes at its start (more: XLA_PYTHON_CLIENT_MEM_FRACTION). `cpu` simulates devices: they
have no memory of their own and no published figures."""

_SLICE = re.compile(r"(?P<kind>\w+):(?P<shape>\d+(x\d+)*)")
_NODE = re.compile(r"gpu:(?P<shape>\d+)x(?P<kind>\w+)")


class Topology(NamedTuple):
    """A machine, parsed from its name."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    kind: str
    """Row of `DEVICES`."""
    num_devices: int

    @property
    def device(self) -> Device:
        """What one device is."""
        return DEVICES[self.kind]


def parse_topology(name: str) -> Topology:
    """The machine called `v5e:4x4`, `v5p:2x2x4`, `gpu:8xh100` (or `h100:8`) or `cpu:8`. Raises: ConfigError."""
    match = _NODE.fullmatch(name) or _SLICE.fullmatch(name)
    device = DEVICES.get(match["kind"]) if match else None
    sizes = [int(size) for size in match["shape"].split("x")] if match else []
    if match is None or device is None or len(sizes) != device.axes or 0 in sizes:
        raise ConfigError(
            f"--topology: got '{name}'; wanted a TPU slice such as v5e:4x4, v6e:4x8, v5p:2x2x4 or tpu7x:2x2x2, the "
            "GPUs of a node such as gpu:8xh100 (a100, h100, h200), or cpu:8"
        )
    kind = match["kind"]
    platform = "cpu" if kind == "cpu" else "gpu" if kind[0] in "ah" else "tpu"
    return Topology(name, platform, kind, device.per_chip * math.prod(sizes))
