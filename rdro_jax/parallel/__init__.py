"""Meshes, shardings and processes."""

from rdro_jax.parallel.mesh import MeshConfig, make_mesh
from rdro_jax.parallel.multihost import global_arrays
from rdro_jax.parallel.sharding import (
    ACTIVATIONS,
    ROWS,
    SHARDS,
    check_heads,
    check_row_length,
    check_rows,
    make_constrain,
    on_host,
    param_shardings,
    path_name,
    replicated,
    rows_sharding,
)
from rdro_jax.parallel.spread import spread_attention, spread_lookup

__all__ = [
    "ACTIVATIONS",
    "ROWS",
    "SHARDS",
    "MeshConfig",
    "check_heads",
    "check_row_length",
    "check_rows",
    "global_arrays",
    "make_constrain",
    "make_mesh",
    "on_host",
    "param_shardings",
    "path_name",
    "replicated",
    "rows_sharding",
    "spread_attention",
    "spread_lookup",
]
