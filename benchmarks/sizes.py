"""How large the measured things are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A Qwen 2 shaped decoder and its batch."""

    layers: int = 4
    d_model: int = 256
    vocab: int = 32_000
    rows: int = 8
    seq: int = 256
    """Tokens in a row."""
    examples: int = 16
    """Examples of the packing benchmark."""
    depths: tuple[int, ...] = (4, 8, 16, 32, 48)
    """Layers of the models of the depth benchmark, which are narrow."""
    vocabs: tuple[int, ...] = (8_000, 32_000, 64_000, 151_936)
    """Vocabularies of the benchmark of the head's growth."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Simulated devices; each divides rows and d_model."""
    matmul: int = 2048
    """Side of the square matrices whose product measures the peak."""
    repeats: int = 5
    seed: int = 0
