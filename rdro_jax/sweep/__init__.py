"""Sweeps: one YAML file -> trials, each finished once, resumed, summarised. Optuna chooses, subprocesses train."""

from rdro_jax.sweep.run import dry_run, run
from rdro_jax.sweep.spec import load_sweep
from rdro_jax.sweep.status import show_status

__all__ = ["dry_run", "load_sweep", "run", "show_status"]
