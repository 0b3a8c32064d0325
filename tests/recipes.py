"""The recipes of configs/: one list for the tests that load, plan and run them."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
PARTS = ("base", "models", "clusters", "sweeps", "data")
"""Folders of what recipes are made of, and of sweeps over them; tests of their own hold them."""
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in PARTS)
