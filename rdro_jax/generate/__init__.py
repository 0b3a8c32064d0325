"""Completions from a model: batched, over a preallocated key-value cache, greedy or sampled."""

from rdro_jax.generate.sample import BUCKET, Sampled, Sampling, generate, sample, unpad

__all__ = ["BUCKET", "Sampled", "Sampling", "generate", "sample", "unpad"]
