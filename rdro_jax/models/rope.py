"""Rotary position embeddings (rotate-half form, as in Hugging Face): frequencies, angles, rotation.

Source: Su et al. 2021 (arXiv:2104.09864); llama3 scaling as published with Llama 3.1; YaRN: Peng et al. 2023
(arXiv:2309.00071).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rdro_jax.models.config import RopeConfig


class Rotation(NamedTuple):
    """Cosine and sine of the angle of every position and frequency, times YaRN's attention factor, float32."""

    cos: Float[Array, "rows seq half"]
    sin: Float[Array, "rows seq half"]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, "half"]:
    """Radians per token of each rotated pair, float64 rounded once to float32."""
    plain = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    stretch = {"default": _leave, "linear": _stretch_all, "llama3": _stretch_llama3, "yarn": _stretch_yarn}[rope.kind]
    return stretch(plain, rope).astype(np.float32)


def _leave(frequencies: Float[np.ndarray, "half"], rope: RopeConfig) -> Float[np.ndarray, "half"]:
    return frequencies


def _stretch_all(frequencies: Float[np.ndarray, "half"], rope: RopeConfig) -> Float[np.ndarray, "half"]:
    """All frequencies divided by `factor`: positions interpolated."""
    return frequencies / rope.factor


def _stretch_llama3(frequencies: Float[np.ndarray, "half"], rope: RopeConfig) -> Float[np.ndarray, "half"]:
    """Frequencies with wavelengths beyond the original context divided by `factor`, interpolated in between."""
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)  # full turns within the old context
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / rope.factor)


def _stretch_yarn(frequencies: Float[np.ndarray, "half"], rope: RopeConfig) -> Float[np.ndarray, "half"]:
    """Frequencies of few turns within the original context divided by `factor`, interpolated over their indices."""
    half = len(frequencies)

    def index_of(turns: float) -> float:
        """Where in the series a wavelength makes so many turns within the original context."""
        return half * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(rope.theta)

    first, last = index_of(rope.beta_fast), index_of(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    # A passage of no width is a step: the thousandth keeps the quotient defined, as in the authors' code.
    divided = np.clip((np.arange(half) - first) / ((last - first) or 0.001), 0.0, 1.0)
    return frequencies * (1.0 - divided + divided / rope.factor)


def rotation(rope: RopeConfig, head_dim: int, positions: Int[Array, "rows seq"]) -> Rotation:
    """Cosines and sines for integer positions; float32 because bfloat16 rounds position 257 to 256."""
    angles = positions.astype(jnp.float32)[..., None] * inverse_frequencies(rope, head_dim)
    return Rotation(jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor)


def rotate(x: Float[Array, "rows heads seq head_dim"], by: Rotation) -> Float[Array, "rows heads seq head_dim"]:
    """`x` with its pairs (i, i + head_dim/2) turned by their angle; computed in float32, in `x`'s type."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = by.cos[:, None], by.sin[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
