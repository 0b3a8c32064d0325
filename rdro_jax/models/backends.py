"""Attention over packed rows by the kernel that suits the machine; all of them compute what `attention.attend` does.

| backend | where | needs |
|---|---|---|
| `xla` | anywhere | nothing: the reference |
| `blocked` | CPU; anywhere by name | rows of a multiple of 64 tokens |
| `cudnn` | NVIDIA | bfloat16 activations, even rows, heads of a multiple of 8 and at most 128 wide |
| `splash` | TPU | rows of a multiple of 128 tokens, heads 64 or a multiple of 128 wide, no sliding window |
"""

import math
from typing import Any, Literal, cast

import jax
from jaxtyping import Array, Bool, Float, Int

from rdro_jax.errors import ConfigError
from rdro_jax.models.blocked import BLOCK
from rdro_jax.models.config import ModelConfig

Backend = Literal["xla", "blocked", "cudnn", "splash"]
SPLASH_BLOCK = 128
"""Tokens of which splash attention wants a multiple."""
MAX_SPLASH_BLOCK = 512
"""Most tokens of a row that splash attention takes at a time."""


def choose_backend(config: ModelConfig, seq: int) -> Backend:
    """The backend a config names, or for `auto` the one that suits the platform and can compute it.

    Raises: ConfigError where the named one cannot.
    """
    obstacles = {
        "xla": None,
        "blocked": _no_blocked(seq),
        "cudnn": _no_cudnn(config, seq),
        "splash": _no_splash(config, seq),
    }
    if config.attention != "auto":
        if obstacles[config.attention]:
            raise ConfigError(
                f"model.attention: {config.attention} wants {obstacles[config.attention]}; set auto or xla"
            )
        return config.attention
    return suited_backend(config, seq, jax.default_backend())


def suited_backend(config: ModelConfig, seq: int, platform: str) -> Backend:
    """What `auto` is on a platform: `gpu`, `tpu` or `cpu`.

    cuDNN's kernel is taken by name only: it compiles for GPUs, but its numbers have been compared with the reference
    nowhere. Those of splash have, in interpretation. The loop of `blocked` suits a CPU; a GPU would wait at every turn.
    """
    if platform == "tpu" and _no_splash(config, seq) is None:
        return "splash"
    return "blocked" if platform == "cpu" and _no_blocked(seq) is None else "xla"


def _no_blocked(seq: int) -> str | None:
    return f"rows of a multiple of {BLOCK} tokens, got {seq}" if seq % BLOCK else None


def _no_cudnn(config: ModelConfig, seq: int) -> str | None:
    if seq % 2:
        return f"rows of an even number of tokens, got {seq}"
    if config.compute_dtype != "bfloat16":
        return f"compute_dtype bfloat16, got {config.compute_dtype}"
    if config.head_dim % 8 or config.head_dim > 128:
        return f"head_dim a multiple of 8 and at most 128, got {config.head_dim}"
    return None


def _no_splash(config: ModelConfig, seq: int) -> str | None:
    if config.sliding_window is not None:
        return "a model without sliding window"
    if seq % SPLASH_BLOCK:
        return f"rows of a multiple of {SPLASH_BLOCK} tokens, got {seq}"
    if config.head_dim != 64 and config.head_dim % 128:
        return f"head_dim 64 or a multiple of 128, got {config.head_dim}"
    return None


def attend_fused(
    queries: Float[Array, "rows heads seq head_dim"],
    keys: Float[Array, "rows kv_heads seq head_dim"],
    values: Float[Array, "rows kv_heads seq head_dim"],
    mask: Bool[Array, "rows seq seq"],
    *,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "rows heads seq head_dim"]:
    """Attention through jax's own front of cuDNN's flash kernel, forward and backward."""
    rows_first = (x.swapaxes(1, 2) for x in (queries, keys, values))
    mixed = jax.nn.dot_product_attention(*rows_first, mask=mask[:, None], implementation=implementation)
    return mixed.swapaxes(1, 2)


def attend_splash(
    queries: Float[Array, "rows heads queries head_dim"],
    keys: Float[Array, "rows kv_heads seq head_dim"],
    values: Float[Array, "rows kv_heads seq head_dim"],
    segment_ids: Int[Array, "rows seq"],
    *,
    part: int | Int[Array, ""] = 0,
    parts: int = 1,
    interpret: bool = False,
) -> Float[Array, "rows heads queries head_dim"]:
    """Attention by the Pallas kernel that skips what lies ahead, blocks of the score matrix at a time.

    The queries are part number `part` of the row's.
    """
    # Here, for the kernel's module takes a second to import and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, length, width = queries.shape[1:]
    size = math.gcd(length, MAX_SPLASH_BLOCK)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length * parts, length * parts))] * heads),
        head_shards=1,
        q_seq_shards=parts,
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, size)),
        interpret=interpret,
    )
    kernel = _kernel_of_part(kernel, part, parts)
    own_ids = jax.lax.dynamic_slice_in_dim(segment_ids, part * length, length, axis=1)

    def one_row(queries: Array, keys: Array, values: Array, own_ids: Array, ids: Array) -> Array:
        mixed = kernel(queries * width**-0.5, keys, values, segment_ids=kernels.SegmentIds(own_ids, ids))
        return cast(Array, mixed).astype(queries.dtype)

    return jax.vmap(one_row)(queries, keys, values, own_ids, segment_ids)


def _kernel_of_part(kernel: Any, part: int | Array, parts: int) -> Any:
    """The kernel of one part of the queries: its share of the tables that say which blocks to visit.

    What `kernel.manual_sharding_spec` does for a caller that hands the kernel through `shard_map`.
    """
    if parts == 1:
        return kernel

    def share(x: Array, axis: int) -> Array:
        size = x.shape[axis] // parts
        return jax.lax.dynamic_slice_in_dim(x, part * size, size, axis)

    def tables(info: Any) -> Any:
        by_query = dict.fromkeys(("data_next", "mask_next", "block_mask"), 1) | {"q_sequence": 0}
        present = {name: axis for name, axis in by_query.items() if getattr(info, name) is not None}
        return info._replace(**{name: share(getattr(info, name), axis) for name, axis in present.items()})

    infos, settings = kernel.tree_flatten()
    return kernel.tree_unflatten(settings, [info if info is None else tables(info) for info in infos])
