"""Launching: what SLURM, Kubernetes, SkyPilot and Cloud TPU are told, from one small cluster file."""

from rdro_jax.config import load_cluster
from rdro_jax.launch.render import launch, render

__all__ = ["launch", "load_cluster", "render"]
