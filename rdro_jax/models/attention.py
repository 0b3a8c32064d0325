"""Grouped-query attention over packed rows, and over a key-value cache while generating."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from rdro_jax.models.backends import attend_fused, attend_splash, choose_backend
from rdro_jax.models.blocked import attend_blocked
from rdro_jax.models.config import ModelConfig
from rdro_jax.models.norm import RMSNorm
from rdro_jax.models.projection import Projection
from rdro_jax.models.rope import Rotation, rotate

CAUSAL_BLOCKS = 4
"""Most blocks of queries in a row: more leave out more of the scores, and make the program longer."""
SHORTEST_BLOCK = 128
"""Queries below which a block is not worth its own matrix products."""
KEPT_NAMES = ("queries", "keys", "values", "mixed")
"""What `remat: named` keeps for the backward pass: with these, attention and its products are not computed again."""


class Cache(NamedTuple):
    """Keys and values of all layers: allocated once, written in place slot by slot."""

    keys: Float[Array, "layers rows kv_heads slots head_dim"]
    values: Float[Array, "layers rows kv_heads slots head_dim"]


class Sight(NamedTuple):
    """What queries of packed rows may see, as each kernel wants it told.

    Where a row's queries are cut into parts, `mask` and the queries are those of one part, keys those of the row.
    """

    mask: Bool[Array, "rows queries seq"]
    segment_ids: Int[Array, "rows seq"]
    part: int | Int[Array, ""] = 0
    """Number of the part."""
    parts: int = 1


class CacheSite(NamedTuple):
    """The cache, and where in it one layer writes the keys and values of the tokens at hand."""

    cache: Cache
    layer: Int[Array, ""]
    start: Int[Array, ""]


def packed_mask(segment_ids: Int[Array, "rows seq"]) -> Bool[Array, "rows seq seq"]:
    """True where a query (middle axis) may see a key (last axis): not later in the row, and of the same segment.

    Padding is a segment of its own, hence no query is left without a key and no softmax without a value.
    """
    seq = segment_ids.shape[1]
    causal = jnp.tri(seq, dtype=bool)
    return (segment_ids[:, :, None] == segment_ids[:, None, :]) & causal[None]


def cache_mask(
    first_slot: Int[Array, "rows"], start: Int[Array, ""], num_queries: int, num_slots: int
) -> Bool[Array, "rows queries slots"]:
    """True where a query may see a cache slot: from the row's first token up to the query's own slot.

    Slots before the first token see themselves only, so that left padding yields numbers and never NaN.
    """
    query = (start + jnp.arange(num_queries))[None, :, None]
    slot = jnp.arange(num_slots)[None, None, :]
    return ((slot >= first_slot[:, None, None]) & (slot <= query)) | (slot == query)


def in_window(
    window: int | None, start: Int[Array, ""], num_queries: int, num_slots: int
) -> Bool[Array, "queries slots"]:
    """True where a slot is among the last `window` up to the query's own; queries stand at slots `start` onwards."""
    query = start + jnp.arange(num_queries)[:, None]
    return jnp.arange(num_slots)[None] > query - (num_slots if window is None else window)


def attend(
    queries: Float[Array, "rows heads queries head_dim"],
    keys: Float[Array, "rows kv_heads slots head_dim"],
    values: Float[Array, "rows kv_heads slots head_dim"],
    mask: Bool[Array, "rows queries slots"],
) -> Float[Array, "rows heads queries head_dim"]:
    """Softmax-weighted mean of the values each query may see; scores and softmax in float32.

    The query heads that share a key head are laid end to end as more queries of that head, so that scores are one
    plain matrix product per key head; weights are normalised after the mean, where there are fewer numbers to divide.
    """
    rows, heads, num_queries, width = queries.shape
    kv_heads, slots = keys.shape[1:3]
    together = (queries * width**-0.5).reshape(rows, kv_heads, heads // kv_heads * num_queries, width)
    scores = jnp.einsum("rhqd,rhsd->rhqs", together, keys, preferred_element_type=jnp.float32)
    apart = scores.reshape(rows, kv_heads, heads // kv_heads, num_queries, slots)
    # The least float and not -inf: its exponential is exactly 0 too, and its gradient is never NaN.
    seen = jnp.where(mask[:, None, None], apart, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(seen - jax.lax.stop_gradient(seen.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1).reshape(rows, heads, num_queries, 1)
    mixed = jnp.einsum(
        "rhqs,rhsd->rhqd",
        weights.reshape(scores.shape).astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return (mixed.reshape(queries.shape) / total).astype(queries.dtype)


def attend_causal(
    queries: Float[Array, "rows heads seq head_dim"],
    keys: Float[Array, "rows kv_heads seq head_dim"],
    values: Float[Array, "rows kv_heads seq head_dim"],
    mask: Bool[Array, "rows seq seq"],
) -> Float[Array, "rows heads seq head_dim"]:
    """`attend` for a mask that never looks ahead: each block of queries meets the keys up to its own end only.

    Four blocks leave out 3/8 of the scores; with the late division that halves the CPU time of attention.
    """
    seq = queries.shape[2]
    size = max(SHORTEST_BLOCK, -(-seq // CAUSAL_BLOCKS))
    blocks = [
        attend(queries[:, :, at:end], keys[:, :, :end], values[:, :, :end], mask[:, at:end, :end])
        for at, end in ((at, min(at + size, seq)) for at in range(0, seq, size))
    ]
    return jnp.concatenate(blocks, axis=2)


def _write(site: CacheSite, keys: Array, values: Array) -> Cache:
    """The cache with the new keys and values in the layer's slots from `start` on."""
    at = (site.layer, 0, 0, site.start, 0)
    return Cache(
        jax.lax.dynamic_update_slice(site.cache.keys, keys[None].astype(site.cache.keys.dtype), at),
        jax.lax.dynamic_update_slice(site.cache.values, values[None].astype(site.cache.values.dtype), at),
    )


Attend = Callable[[ModelConfig, Array, Array, Array, Sight], Array]
"""(config, queries, keys, values, sight) -> attention's answers: where a caller with a mesh splits it over devices."""


def attend_packed(
    config: ModelConfig,
    queries: Float[Array, "rows heads queries head_dim"],
    keys: Float[Array, "rows kv_heads seq head_dim"],
    values: Float[Array, "rows kv_heads seq head_dim"],
    sight: Sight,
) -> Float[Array, "rows heads queries head_dim"]:
    """Attention within packed rows, by the backend of the config."""
    backend = choose_backend(config, queries.shape[2])
    if backend == "splash":
        return attend_splash(queries, keys, values, sight.segment_ids, part=sight.part, parts=sight.parts)
    if backend == "blocked":
        return attend_blocked(queries, keys, values, sight.mask)
    if backend == "cudnn":
        return attend_fused(queries, keys, values, sight.mask)
    return (attend_causal if sight.parts == 1 else attend)(queries, keys, values, sight.mask)


class Attention(nn.Module):
    """Self-attention of one layer. With a cache site it attends over the cache, its own tokens included."""

    config: ModelConfig
    attend: Attend = attend_packed

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "rows seq d_model"],
        turn: Rotation,
        sight: Sight | Bool[Array, "rows seq slots"],
        site: CacheSite | None = None,
    ) -> tuple[Float[Array, "rows seq d_model"], Cache | None]:
        c = self.config
        queries = self._heads("q", x, c.n_heads)
        keys = self._heads("k", x, c.n_kv_heads)
        values = self._heads("v", x, c.n_kv_heads)
        if c.qk_norm:
            queries = RMSNorm(c.rms_norm_eps, name="q_norm")(queries)
            keys = RMSNorm(c.rms_norm_eps, name="k_norm")(keys)
        queries, keys = rotate(queries, turn), rotate(keys, turn)
        if isinstance(sight, Sight):
            queries, keys, values = map(checkpoint_name, (queries, keys, values), KEPT_NAMES)
            cache, mixed = None, checkpoint_name(self.attend(c, queries, keys, values, sight), "mixed")
        else:
            assert site is not None, "a mask of cache slots comes with a cache"
            cache = _write(site, keys, values)
            mixed = attend(queries, cache.keys[site.layer], cache.values[site.layer], sight)
        flat = mixed.swapaxes(1, 2).reshape(*x.shape[:2], c.n_heads * c.head_dim)
        return Projection(c, c.d_model, name="o_proj")(flat), cache

    def _heads(self, which: str, x: Array, heads: int) -> Float[Array, "rows heads seq head_dim"]:
        c = self.config
        flat = Projection(c, heads * c.head_dim, c.qkv_bias, name=f"{which}_proj")(x)
        return flat.reshape(*x.shape[:2], heads, c.head_dim).swapaxes(1, 2)
