"""Meshes, shardings and processes."""

from rdro_jax.parallel.mesh import MeshConfig, make_mesh
from rdro_jax.parallel.multihost import global_arrays
from rdro_jax.parallel.sharding import (
    check_heads,
    check_rows,
    make_constrain,
    param_shardings,
    path_name,
    replicated,
    rows_sharding,
)

__all__ = [
    "MeshConfig",
    "check_heads",
    "check_rows",
    "global_arrays",
    "make_constrain",
    "make_mesh",
    "param_shardings",
    "path_name",
    "replicated",
    "rows_sharding",
]
