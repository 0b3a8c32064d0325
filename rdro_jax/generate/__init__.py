"""Completions from a model: batched, over a preallocated key-value cache, greedy or sampled."""

from rdro_jax.generate.sample import Sampled, Sampling, generate, sample, unpad

__all__ = ["Sampled", "Sampling", "generate", "sample", "unpad"]
