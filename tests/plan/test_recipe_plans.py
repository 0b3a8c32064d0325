"""The figures in the headers of configs/ are those of `rdro plan --estimate`, and every recipe fits its machine."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from rdro_jax.checkpoint import CheckpointConfig
from rdro_jax.config import load_config
from rdro_jax.parallel.hardware import GIB
from rdro_jax.plan import make_plan, parse_topology
from rdro_jax.sweep.spec import load_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("paper/*.yaml"), *CONFIGS.glob("two-stage/*.yaml")]
RECIPES = [*sorted(RECIPES), CONFIGS / "sweeps" / "paper.yaml"]
FIGURES = re.compile(r"(\S+) on (\S+): ([\d.]+) of ([\d.]+) GiB a device, ([\d.]+) s a step at least")


def configs(recipe: Path):
    """The config of a recipe; of a sweep, those that show each of its losses."""
    if recipe.parent.name != "sweeps":
        return [load_config(recipe)]
    loaded = load_sweep(recipe)
    return list({point["loss.name"]: loaded.config(point) for point in loaded.space.probes()}.values())


def planned(config, model: str, machine: str):
    """The plan for a preset; recipes that differ in nothing a plan reads share one."""
    path = str(CONFIGS / "models" / f"{model}.yaml")
    files = {"output_dir": "-", "data": replace(config.data, train="-", eval=None, heldout_fraction=0.0)}
    unread = {"eval_steps": None, "checkpoint": CheckpointConfig()}
    return plan_once(config.model_copy(update=files | unread | {"model": replace(config.model, path=path)}), machine)


@cache
def plan_once(config, machine: str):
    return make_plan(config, parse_topology(machine), compiling=False)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_header_says_what_the_estimate_says(recipe):
    told = FIGURES.findall(recipe.read_text())
    assert told, "no line such as `llama-3.1-8b on gpu:8xh100: 38.58 of 59.32 GiB a device, 0.40 s a step at least`"
    for model, machine, needed, memory, seconds in told:
        plans = [planned(config, model, machine) for config in configs(recipe)]
        assert all(plan.fits for plan in plans)
        assert max(plan.needed for plan in plans) / GIB == pytest.approx(float(needed), rel=0.1)
        assert max(max(plan.times.values()) for plan in plans) == pytest.approx(float(seconds), rel=0.1)
        assert float(memory) == pytest.approx(plans[0].topology.device.memory / GIB, abs=0.01)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_header_has_all_its_parts(recipe):
    for part in ("Command", "Hardware", "Memory", "Time"):
        assert f"# {part}:" in recipe.read_text()
    assert re.search("# (Look at|Expect):", recipe.read_text())
