"""The architecture of a decoder as one frozen value: a static argument of `jit`, a cache key and a run record."""

from dataclasses import dataclass, field
from typing import Literal

Remat = Literal["none", "dots", "named", "full"]
"""From most memory to least."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base wavelength, and how wavelengths are stretched beyond the original context."""

    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    """`default`: plain RoPE. `linear`: all wavelengths times `factor`. `llama3`, `yarn`: long ones only, with a smooth
    passage over wavelengths or over their indices."""
    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    factor: float = 1.0
    """Division of the frequencies of stretched wavelengths."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original context / this are divided in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original context / this are left alone."""
    original_max_position_embeddings: int = 8192
    """llama3, yarn: context of the pretraining before stretching, in tokens."""
    beta_fast: float = 32.0
    """yarn: wavelengths with more turns than this within the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: wavelengths with fewer turns than this within the original context are divided in full."""
    truncate: bool = True
    """yarn: the passage begins and ends at whole indices of wavelengths."""
    attention_factor: float = 1.0
    """yarn: multiplies queries and keys, to counter the wider spread of a longer context."""


@dataclass(frozen=True)
class MoEConfig:
    """A feed-forward layer of which each token uses a few parts, the experts."""

    n_experts: int
    """Experts per layer."""
    n_active: int
    """Experts a token is sent to: those its router scores highest."""
    d_expert: int
    """Width of the gated feed-forward layer of one expert."""
    normalise: bool = False
    """True where the weights of a token's experts are divided by their sum."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder and how it computes. Names of sizes are those of the design; `hf.py` reads Hugging Face's.

    >>> shape = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=16)
    >>> config = ModelConfig("qwen2", vocab_size=32, qkv_bias=True, **shape)
    >>> config.rope.theta, config.compute_dtype
    (10000.0, 'float32')
    >>> {config: "hashable"}[ModelConfig("qwen2", vocab_size=32, qkv_bias=True, **shape)]
    'hashable'
    """

    model_type: str
    """Hugging Face's name of the family: a key of `FAMILIES`."""
    vocab_size: int
    """Rows of the embedding, in tokens."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Decoder blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads; divides `n_heads`."""
    head_dim: int
    """Width of one head; even."""
    d_ff: int
    """Width of the gated feed-forward layer."""
    moe: MoEConfig | None = None
    """Experts in place of the one feed-forward layer of width `d_ff` (Qwen 3 MoE)."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square before its root."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Rotary position embedding."""
    tie_word_embeddings: bool = False
    """True where the output head is the input embedding."""
    qkv_bias: bool = False
    """True where query, key and value projections have a bias (Qwen 2, 2.5)."""
    qk_norm: bool = False
    """True where queries and keys are normalised per head (Qwen 3)."""
    sliding_window: int | None = None
    """Tokens a query sees, itself included; None: all before it."""
    first_sliding_layer: int = 0
    """Layers before this one see everything whatever the window (Qwen 2 with a window)."""
    max_position_embeddings: int = 2048
    """Longest sequence the model was made for, in tokens."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and matrix products; norms, softmax, angles and logits are float32 always."""
    attention: Literal["auto", "xla", "blocked", "cudnn", "splash"] = "auto"
    """Kernel of attention over packed rows; `auto` takes what suits the platform (`models/backends.py`)."""
    remat: Remat = "full"
    """What is kept of each layer for the backward pass, the rest being computed again. `full`: nothing but its input.
    `named`: queries, keys, values and what attention mixed of them. `dots`: every product of a weight matrix.
    `none`: everything."""
