"""Functions of a model run by every device on its own part, where the compiler would gather more than they need."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from rdro_jax.parallel.sharding import ACTIVATIONS, ROWS, SHARDS

Lookup = Callable[[Float[Array, "vocab d_model"], Int[Array, "rows seq"], str], Float[Array, "rows seq d_model"]]
"""(table, tokens, dtype) -> embedded tokens."""


def spread_lookup(mesh: Mesh) -> Lookup:
    """A lookup that gathers no part of the table, nor of its gradient.

    Each device finds its own columns, in its own share of the vocabulary, for all the tokens that the columns'
    other holders have; then they exchange columns for tokens. Ids beyond the vocabulary give NaN.
    """

    def lookup(table: Array, tokens: Array, dtype: str) -> Array:
        def local(table, tokens):
            ids = jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True)
            ids = jax.lax.all_gather(ids, "context", axis=1, tiled=True)
            own = ids - jax.lax.axis_index("tensor") * table.shape[0]
            inside = (own >= 0) & (own < table.shape[0])
            found = jnp.take(table, jnp.where(inside, own, 0), axis=0).astype(dtype)
            x = jnp.where(inside[..., None], found, 0)
            # `context` is the minor of the two axes that split the columns, hence first to be undone.
            x = jax.lax.all_to_all(x, "context", split_axis=1, concat_axis=2, tiled=True)
            x = jax.lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=2, tiled=True)
            return jax.lax.psum(x, "tensor")

        ins = (PartitionSpec("tensor", SHARDS), ACTIVATIONS)
        x = jax.shard_map(local, mesh=mesh, in_specs=ins, out_specs=ACTIVATIONS)(table, tokens)
        known = (tokens >= 0) & (tokens < table.shape[0])
        return jnp.where(known[..., None], x, jnp.nan)

    return lookup


def spread_attention(mesh: Mesh, attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`attend(config, queries, keys, values, sight)` run by every device on its own rows, heads and queries.

    Kernels are opaque to the partitioner, which would gather all heads and rows for them. Where `context` cuts rows
    into parts, each device gathers keys and values of its rows whole, and `sight` says which part its queries are.
    """
    rows, parts = ROWS[0], mesh.shape["context"]
    by_head = PartitionSpec(rows, "tensor", "context")

    def spread(config: Any, queries: jax.Array, keys: jax.Array, values: jax.Array, sight: Any) -> jax.Array:
        def local(queries, keys, values, mask, segment_ids):
            whole = lambda x: jax.lax.all_gather(x, "context", axis=2, tiled=True) if parts > 1 else x  # noqa: E731
            part = jax.lax.axis_index("context") if parts > 1 else 0
            here = sight._replace(mask=mask, segment_ids=segment_ids, part=part, parts=parts)
            return attend(config, queries, whole(keys), whole(values), here)

        # check_vma=False: Pallas kernels do not say over which axes their results vary.
        split = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(by_head, by_head, by_head, ACTIVATIONS, ROWS),
            out_specs=by_head,
            check_vma=False,
        )
        return split(queries, keys, values, sight.mask, sight.segment_ids)

    return spread
