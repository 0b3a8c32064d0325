"""Three steps of a run in small: whether a config loads, plans and runs, in seconds, on any machine."""

from rdro_jax.smoke.run import smoke

__all__ = ["smoke"]
