"""Meshes, shardings and processes."""

from rdro_jax.parallel.mesh import MeshConfig, make_mesh
from rdro_jax.parallel.multihost import (
    array_from_first,
    from_first,
    global_arrays,
    host_share,
    initialize,
    is_first,
    is_loss_of_peer,
    leave,
    shard_rows,
)
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
    "Placed",
    "array_from_first",
    "check_heads",
    "check_row_length",
    "check_rows",
    "from_first",
    "global_arrays",
    "host_share",
    "initialize",
    "is_first",
    "is_loss_of_peer",
    "layout",
    "leave",
    "make_constrain",
    "make_mesh",
    "on_host",
    "param_shardings",
    "path_name",
    "replicated",
    "rows_sharding",
    "shard_rows",
    "spread_attention",
    "spread_lookup",
]
