"""The public names: what each package says in `__all__`, and what modules that are packages of their own define."""

import importlib
import inspect
from typing import Any

PACKAGES = ["losses", "models", "generate", "data", "train", "parallel", "config", "evaluate", "plan", "report"]
PACKAGES += ["launch", "study", "quickstart", "cli"]
MODULES = ["batch", "errors", "hub", "run_files", "optim", "checkpoint", "export", "losses.diagnostics"]
SWEEP = {"spec": "load_sweep", "run": "run", "points": "dry_run", "status": "show_status"}
"""Of `rdro_jax.sweep`, which itself imports nothing: `rdro sweep FILE --status` needs no Optuna."""


def public_names() -> dict[str, Any]:
    """Functions and classes by the place of their definition, each once."""
    found = {}
    for name in PACKAGES + MODULES:
        module = importlib.import_module(f"rdro_jax.{name}")
        for value in (getattr(module, each) for each in _names(module)):
            if inspect.isroutine(value) or inspect.isclass(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    for name, function in SWEEP.items():
        module = importlib.import_module(f"rdro_jax.sweep.{name}")
        found[f"{module.__name__}.{function}"] = getattr(module, function)
    return found


def _names(module: Any) -> list[str]:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])
