"""Judging a policy against its reference on held-out rows."""

from rdro_jax.evaluate.heldout import evaluate

__all__ = ["evaluate"]
