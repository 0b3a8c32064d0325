"""The quickstart: a small pretrained model aligned on sentences that people have rated, in a quarter of an hour."""

from rdro_jax.quickstart.fetch import fetch_model, fetch_reviews
from rdro_jax.quickstart.story import run

__all__ = ["fetch_model", "fetch_reviews", "run"]
