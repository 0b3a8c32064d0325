"""Sweeps: one YAML file -> trials, each finished once, resumed, summarised. Optuna chooses, subprocesses train."""
