"""The decoder of every family as pure functions: embed, scan one block over the stacked layers, normalise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from rdro_jax.models.attention import (
    KEPT_NAMES,
    Attend,
    Attention,
    Cache,
    CacheSite,
    Sight,
    attend_packed,
    cache_mask,
    in_window,
    packed_mask,
)
from rdro_jax.models.config import ModelConfig, Remat
from rdro_jax.models.moe import RoutedMLP
from rdro_jax.models.norm import RMSNorm
from rdro_jax.models.projection import Projection
from rdro_jax.models.rope import Rotation, rotation

Params = dict[str, Any]
"""Nested dicts of arrays, named as in Hugging Face, layers stacked on axis 0."""

Constrain = Callable[[str, Array], Array]
"""Called as `constrain("activations", x)` on [rows, seq, d_model]: where a caller pins shardings."""

Lookup = Callable[[Array, Array, str], Array]
"""(table, tokens, dtype) -> embedded tokens: where a caller with a mesh splits the lookup over devices."""


class MLP(nn.Module):
    """Gated feed-forward layer: `down(silu(gate(x)) * up(x))`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows seq d_model"]) -> Float[Array, "rows seq d_model"]:
        c = self.config
        gate = Projection(c, c.d_ff, name="gate_proj")(x)
        up = Projection(c, c.d_ff, name="up_proj")(x)
        return Projection(c, c.d_model, name="down_proj")(nn.silu(gate) * up)


class DecoderBlock(nn.Module):
    """One pre-norm layer: attention, then the feed-forward layer, each added to the residual stream."""

    config: ModelConfig
    attend: Attend = attend_packed

    @nn.compact
    def __call__(
        self, x: Float[Array, "rows seq d_model"], turn: Rotation, sight: Sight | Array, site: CacheSite | None = None
    ) -> tuple[Float[Array, "rows seq d_model"], Cache | None]:
        c = self.config
        normed = RMSNorm(c.rms_norm_eps, name="input_layernorm")(x)
        mixed, cache = Attention(c, self.attend, name="self_attn")(normed, turn, sight, site)
        x = x + mixed
        mlp = MLP(c, name="mlp") if c.moe is None else RoutedMLP(c, name="mlp")
        return x + mlp(RMSNorm(c.rms_norm_eps, name="post_attention_layernorm")(x)), cache


def init_params(config: ModelConfig, key: Array, *, dtype: str = "float32") -> Params:
    """Random parameters: matrices normal with deviation 0.02, scales 1, biases 0.

    >>> import jax, jax.numpy as jnp
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> params = init_params(config, jax.random.key(0))
    >>> params["layers"]["mlp"]["up_proj"]["kernel"].shape  # [layers, d_model, d_ff]
    (1, 8, 16)
    """
    embed_key, head_key, layers_key = jax.random.split(key, 3)
    table_shape = (config.vocab_size, config.d_model)
    params = {
        "embed_tokens": {"embedding": 0.02 * jax.random.normal(embed_key, table_shape)},
        "layers": jax.vmap(lambda k: _init_layer(config, k))(jax.random.split(layers_key, config.n_layers)),
        "norm": {"scale": jnp.ones(config.d_model)},
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = {"embedding": 0.02 * jax.random.normal(head_key, table_shape)}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _init_layer(config: ModelConfig, key: Array) -> Params:
    """Random parameters of one block, shapes inferred from one token."""
    token = jnp.zeros((1, 1, config.d_model), config.compute_dtype)
    turn = rotation(config.rope, config.head_dim, jnp.zeros((1, 1), jnp.int32))
    sight = Sight(jnp.ones((1, 1, 1), bool), jnp.ones((1, 1), jnp.int32))
    # By the reference kernel: the others have demands on shapes, and the parameters do not depend on the kernel.
    block = DecoderBlock(replace(config, attention="xla"))
    return dict(block.init(key, token, turn, sight)["params"])


def abstract_params(config: ModelConfig, *, dtype: str = "float32") -> Params:
    """Shapes and types of the parameters as `ShapeDtypeStruct`, without allocating any."""
    return jax.eval_shape(lambda key: init_params(config, key, dtype=dtype), jax.random.key(0))


def unconstrained(name: str, x: Array) -> Array:
    """`x`: the `constrain` of a caller without a mesh."""
    return x


def take(
    table: Float[Array, "vocab d_model"], tokens: Int[Array, "rows seq"], dtype: str
) -> Float[Array, "rows seq d_model"]:
    """Embedded tokens; an id beyond the vocabulary gives NaN, not a neighbour's embedding."""
    return jnp.take(table, tokens, axis=0, mode="fill").astype(dtype)


def forward(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "rows seq"],
    positions: Int[Array, "rows seq"] | None = None,
    segment_ids: Int[Array, "rows seq"] | None = None,
    *,
    constrain: Constrain = unconstrained,
    attend: Attend = attend_packed,
    lookup: Lookup = take,
) -> Float[Array, "rows seq d_model"]:
    """Hidden states after the final norm, in the compute type.

    Tokens see earlier tokens of their own segment only. `positions` count from 0 in each row by default (packed rows
    restart them in every segment); `segment_ids` are one segment per row by default. A caller with a mesh pins
    activations by `constrain`, and splits attention and the embedding over the devices by `attend` and `lookup`.

    >>> import jax, jax.numpy as jnp
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> params = init_params(config, jax.random.key(0))
    >>> forward(params, config, jnp.array([[5, 6, 7]])).shape  # [rows, seq, d_model]
    (1, 3, 8)
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    turn = rotation(config.rope, config.head_dim, positions)
    mask = packed_mask(segment_ids)
    masks = _masks(config, mask, in_window(config.sliding_window, jnp.int32(0), tokens.shape[1], tokens.shape[1]))

    def layer(x: Array, scanned: tuple[Params, Array]) -> tuple[Array, None]:
        layer_params, index = scanned
        x, _ = _apply(DecoderBlock(config, attend), layer_params, x, turn, Sight(masks(index), segment_ids))
        return constrain("activations", x), None

    layers = (params["layers"], jnp.arange(config.n_layers))
    embedded = lookup(params["embed_tokens"]["embedding"], tokens, config.compute_dtype)
    x, _ = jax.lax.scan(_rematted(layer, config.remat), constrain("activations", embedded), layers)
    return _final_norm(params, config, x)


def _rematted(layer: Callable, remat: Remat) -> Callable:
    """`layer` that keeps for its backward pass what `remat` says."""
    if remat == "none":
        return layer
    kept = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "named": jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES),
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    # prevent_cse=False: inside a scan XLA cannot merge the recomputation with the first pass anyway.
    return jax.checkpoint(layer, prevent_cse=False, policy=kept[remat])


def _masks(config: ModelConfig, mask: Array, window: Array) -> Callable[[Array], Array]:
    """The mask of each layer by its index: the same for all, unless some of them look through a window."""
    if config.sliding_window is None:
        return lambda index: mask
    return lambda index: mask & (window | (index < config.first_sliding_layer))


def init_cache(config: ModelConfig, rows: int, slots: int) -> Cache:
    """An empty key-value cache for `rows` sequences of at most `slots` tokens, in the compute type."""
    shape = (config.n_layers, rows, config.n_kv_heads, slots, config.head_dim)
    return Cache(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def forward_cached(
    params: Params,
    config: ModelConfig,
    tokens: Int[Array, "rows new"],
    cache: Cache,
    start: Int[Array, ""],
    first_slot: Int[Array, "rows"],
) -> tuple[Float[Array, "rows new d_model"], Cache]:
    """Hidden states of new tokens after the final norm, and the cache with them written at slots `start` onwards.

    `first_slot` is the slot of each row's position 0: prompts of different lengths are padded on the left, so that all
    rows write the same slot. The prompt and each generated token go through this one function.
    """
    slots = cache.keys.shape[3]
    positions = jnp.maximum(start + jnp.arange(tokens.shape[1])[None] - first_slot[:, None], 0)
    turn = rotation(config.rope, config.head_dim, positions)
    mask = cache_mask(first_slot, start, tokens.shape[1], slots)
    masks = _masks(config, mask, in_window(config.sliding_window, start, tokens.shape[1], slots))

    # The cache is the scan's carry, not its input and output: carried, XLA updates it in place.
    def layer(carry: tuple[Array, Cache], scanned: tuple[Params, Array]) -> tuple[tuple[Array, Cache], None]:
        x, cache = carry
        layer_params, index = scanned
        x, written = _apply(DecoderBlock(config), layer_params, x, turn, masks(index), CacheSite(cache, index, start))
        return (x, cast(Cache, written)), None

    initial = (take(params["embed_tokens"]["embedding"], tokens, config.compute_dtype), cache)
    (x, cache), _ = jax.lax.scan(layer, initial, (params["layers"], jnp.arange(config.n_layers)))
    return _final_norm(params, config, x), cache


def output_embedding(params: Params, config: ModelConfig) -> Float[Array, "vocab d_model"]:
    """The table whose rows score the vocabulary: the input embedding when tied, else the head."""
    return params["embed_tokens" if config.tie_word_embeddings else "lm_head"]["embedding"]


def logits(params: Params, config: ModelConfig, hidden: Float[Array, "*batch d_model"]) -> Float[Array, "*batch vocab"]:
    """Scores of every vocabulary word, in nats up to a constant, float32.

    For training use the chunked log-probs: this array is large.

    >>> import jax, jax.numpy as jnp
    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("llama", vocab_size=32, **shape)
    >>> params = init_params(config, jax.random.key(0))
    >>> hidden = forward(params, config, jnp.array([[5, 6, 7]]))
    >>> logits(params, config, hidden).shape  # [rows, seq, vocab]
    (1, 3, 32)
    """
    table = output_embedding(params, config).astype(config.compute_dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def _apply(
    block: DecoderBlock,
    layer_params: Params,
    x: Array,
    turn: Rotation,
    sight: Sight | Array,
    site: CacheSite | None = None,
) -> tuple[Array, Cache | None]:
    """One block as a pure function of its parameters."""
    result = block.apply({"params": layer_params}, x, turn, sight, site)
    return cast(tuple[Array, Cache | None], result)


def _final_norm(params: Params, config: ModelConfig, x: Array) -> Array:
    return cast(Array, RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x))
