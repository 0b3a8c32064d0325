"""The device mesh: `data` splits rows, `fsdp` splits rows and parameters, `tensor` splits heads and vocabulary."""

import math
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

from rdro_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, in devices; at most one may be -1, which takes the devices that remain."""

    data: int = 1
    """Replicas of the parameters, each with its share of the rows."""
    fsdp: int = -1
    """Shards of the parameters along their first matrix axis, each with its share of the rows."""
    tensor: int = 1
    """Shards of heads, feed-forward columns and vocabulary."""

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """Axis sizes whose product is `devices`. Raises `ConfigError` where none fits."""
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ConfigError(
                f"mesh: got {_spell(sizes)}; wanted sizes >= 1 and at most one -1 (the remaining devices)"
            )
        fixed = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = devices // fixed
        if math.prod(sizes) != devices or 0 in sizes:
            raise ConfigError(
                f"mesh: got {_spell([self.data, self.fsdp, self.tensor])} for {devices} devices; "
                f"wanted sizes whose product is {devices}, or one -1 with a rest that divides {devices}"
            )
        return sizes[0], sizes[1], sizes[2]


def _spell(sizes):
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over `devices` (default: all) with axes data, fsdp, tensor."""
    devices = devices if devices is not None else jax.devices()
    # Auto, said aloud: jax.make_mesh defaults to Explicit axes since jax 0.9.
    return jax.make_mesh(config.sizes(len(devices)), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
