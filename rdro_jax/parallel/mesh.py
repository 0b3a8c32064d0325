"""The device mesh: which devices work as replicas, which share parameters, long rows, heads and vocabulary."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from rdro_jax.errors import ConfigError

AXES = ("data", "fsdp", "context", "tensor")
"""From the axis that talks least to the one that talks most, as `mesh_utils` wants them."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, in devices; at most one may be -1, which takes the devices that remain."""

    data: int = 1
    """Replicas of the parameters, each with its share of the rows."""
    fsdp: int = -1
    """Shards of the parameters along one matrix axis, each with its share of the rows."""
    tensor: int = 1
    """Shards of heads, feed-forward columns and vocabulary."""
    context: int = 1
    """Parts into which every row is cut along its tokens; they also shard the parameters, as `fsdp` does."""
    dcn_data: int = 1
    """Factor of `data` that lies across slices or nodes, where the network is slower than within one."""
    dcn_fsdp: int = 1
    """Factor of `fsdp` that lies across slices or nodes."""

    def sizes(self, devices: int) -> tuple[int, int, int, int]:
        """Sizes of `AXES`, whose product is `devices`. Raises `ConfigError` where none fits."""
        asked = (self.data, self.fsdp, self.context, self.tensor)
        sizes = list(asked)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ConfigError(
                f"mesh: got {_spell(asked)}; wanted sizes >= 1 and at most one -1 (the remaining devices)"
            )
        fixed = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = devices // fixed
        if math.prod(sizes) != devices or 0 in sizes:
            raise ConfigError(
                f"mesh: got {_spell(asked)} for {devices} devices; "
                f"wanted sizes whose product is {devices}, or one -1 with a rest that divides {devices}"
            )
        return sizes[0], sizes[1], sizes[2], sizes[3]

    def across(self, devices: int) -> tuple[int, int, int, int]:
        """Factors of the sizes that lie across slices or nodes. Raises `ConfigError` where one is no factor."""
        factors = (self.dcn_data, self.dcn_fsdp, 1, 1)
        for axis, size, factor in zip(AXES, self.sizes(devices), factors, strict=True):
            if factor < 1 or size % factor:
                raise ConfigError(f"mesh.dcn_{axis}: got {factor}; wanted a factor of {axis}={size}")
        return factors


def _spell(sizes):
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over `devices` (default: all) with axes data, fsdp, context, tensor.

    Raises: `ConfigError` where the sizes do not cover the devices or do not keep to their slices.
    """
    devices = devices if devices is not None else jax.devices()
    # Auto, said aloud: jax.make_mesh defaults to Explicit axes since jax 0.9.
    return Mesh(device_grid(config, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(config: MeshConfig, devices: list[Any]) -> np.ndarray:
    """The devices as an array of the mesh's shape: neighbours in it are neighbours on the machine."""
    sizes, across = config.sizes(len(devices)), config.across(len(devices))
    groups, kind = _groups(devices)
    if math.prod(across) == 1 and (kind == "processes" or len(groups) == 1):
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    check_groups(config, len(devices), len(groups), kind)
    within = tuple(size // factor for size, factor in zip(sizes, across, strict=True))
    if {math.prod(within)} != {*groups.values()}:
        raise ConfigError(f"mesh: got {kind} of {sorted(groups.values())} devices; wanted equal ones")
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, process_is_granule=kind == "processes", allow_split_physical_axes=True
    )


def check_groups(config: MeshConfig, devices: int, groups: int, kind: str = "slices") -> None:
    """Raises: ConfigError unless the mesh of so many devices has its groups as what its `dcn_` factors part."""
    if math.prod(config.across(devices)) != groups:
        raise ConfigError(
            f"mesh: got dcn_data={config.dcn_data}, dcn_fsdp={config.dcn_fsdp} for devices in {groups} {kind}; "
            f"wanted factors whose product is {groups}"
        )


def _groups(devices: list[Any]) -> tuple[Counter, str]:
    """Devices in each group that a faster network joins: slices where the platform knows them, else processes."""
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) > 1:
        return slices, "slices"
    return Counter(device.process_index for device in devices), "processes"
