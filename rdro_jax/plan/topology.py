"""Machines to plan for, by name: what one device is, and how many there are."""

import math
import re
from typing import Literal, NamedTuple

from rdro_jax.errors import ConfigError
from rdro_jax.parallel.hardware import DEVICES, Device

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
            f"--topology: got '{name}'; wanted a TPU slice such as v5e:4x4, v6e:4x8, v5p:2x2x4 or tpu7x:2x2x2, "
            "GPUs in nodes of 8 such as gpu:8xh100 (a100, h100, h200), or cpu:8"
        )
    kind = match["kind"]
    platform = "cpu" if kind == "cpu" else "gpu" if kind[0] in "ah" else "tpu"
    return Topology(name, platform, kind, device.per_chip * math.prod(sizes))
