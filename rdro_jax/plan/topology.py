"""Machines to plan for, by name: what one device is, and how many there are."""

import math
import re
from typing import Literal, NamedTuple

from rdro_jax.errors import ConfigError
from rdro_jax.parallel.hardware import DEVICES, Device

_SLICE = re.compile(r"((?P<slices>[2-9]|[1-9]\d+)x)?(?P<kind>[a-z]\w*):(?P<shape>\d+(x\d+)*)")
_NODE = re.compile(r"gpu:(?P<shape>\d+)x(?P<kind>\w+)")


class Topology(NamedTuple):
    """A machine, parsed from its name."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    kind: str
    """Row of `DEVICES`."""
    num_devices: int
    """Of all slices."""
    slices: int = 1
    """TPU slices, joined by a network slower than the links within one."""

    @property
    def device(self) -> Device:
        """What one device is."""
        return DEVICES[self.kind]

    @property
    def slice_name(self) -> str:
        """What one slice is called."""
        return self.name if self.slices == 1 else self.name.partition("x")[2]


def parse_topology(name: str) -> Topology:
    """The machine called `v5e:4x4`, `2xv5e:4x4` (two slices), `gpu:8xh100` (or `h100:8`) or `cpu:8`.

    Raises: ConfigError.
    """
    match = _NODE.fullmatch(name) or _SLICE.fullmatch(name)
    device = DEVICES.get(match["kind"]) if match else None
    sizes = [int(size) for size in match["shape"].split("x")] if match else []
    platform = "cpu" if match and match["kind"] == "cpu" else "gpu" if match and match["kind"][0] in "ah" else "tpu"
    slices = int(match.groupdict().get("slices") or 1) if match else 1
    sliced = slices > 1 and platform != "tpu"
    if match is None or device is None or len(sizes) != device.axes or 0 in sizes or sliced:
        raise ConfigError(
            f"--topology: got '{name}'; wanted a TPU slice such as v5e:4x4, v6e:4x8, v5p:2x2x4 or tpu7x:2x2x2, "
            "several such as 2xv5e:4x4, GPUs in nodes of 8 such as gpu:8xh100 (a100, h100, h200), or cpu:8"
        )
    return Topology(name, platform, match["kind"], slices * device.per_chip * math.prod(sizes), slices)
