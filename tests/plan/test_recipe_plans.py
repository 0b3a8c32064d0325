"""The figures in the headers of configs/ are those of `rdro plan --estimate`, and every recipe fits its machine."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from recipes import CONFIGS
from recipes import RECIPES as ALONE

from rdro_jax.checkpoint import CheckpointConfig
from rdro_jax.config import load_config
from rdro_jax.parallel.hardware import GIB
from rdro_jax.plan import make_plan, parse_topology
from rdro_jax.sweep.points import known_points
from rdro_jax.sweep.spec import load_sweep

SWEEPS = [CONFIGS / "sweeps" / f"{name}.yaml" for name in ("losses", "paper")]
RECIPES = [*ALONE, *SWEEPS]
ON_CPU = [CONFIGS / "sweeps" / f"{name}.yaml" for name in ("quickstart", "study")]
"""Recipes whose machine has no published peaks."""
FIGURES = re.compile(
    r"(\S+) on (\S+?)((?:, \S+=\S+)*): ([\d.]+) of ([\d.]+) GiB a device; "
    r"([\d.]+) s a step, ([\d,]+) s in all, at least$",
    re.MULTILINE,
)
STEPS = re.compile(r"([\d,]+) rows of ([\d,]+) tokens are ([\d,]+) steps of ([\d,]*\d)(?:, times (\d+))?")

named = lambda path: str(path.relative_to(CONFIGS))  # noqa: E731
number = lambda text: float(text.replace(",", ""))  # noqa: E731


@cache
def configs(recipe: Path, overrides: tuple[str, ...] = ()):
    """The config of a recipe; of a sweep, those that show each of its losses."""
    if recipe.parent.name != "sweeps":
        return [load_config(recipe, overrides)]
    loaded = load_sweep(recipe)
    return list({point["loss.name"]: loaded.config(point) for point in loaded.space.probes()}.values())


def planned(config, model: str, machine: str):
    """The plan for a preset; recipes that differ in nothing a plan reads share one."""
    path = str(CONFIGS / "models" / f"{model}.yaml")
    files = {"output_dir": "-", "data": replace(config.data, train="-", eval=None, heldout_fraction=0.0, prepared=None)}
    unread = {"eval_steps": None, "checkpoint": CheckpointConfig(), "reference": type(config.reference)()}
    return plan_once(config.model_copy(update=files | unread | {"model": replace(config.model, path=path)}), machine)


@cache
def plan_once(config, machine: str):
    return make_plan(config, parse_topology(machine), compiling=False)


def steps(recipe: Path) -> int:
    """Steps by the header, those of all runs of a sweep with one model."""
    lines = STEPS.findall(recipe.read_text())
    assert lines, "no line such as `15,000 rows of 500 tokens are 115 steps of 65,536`"
    config = configs(recipe)[0]
    for rows, length, count, tokens, _ in lines:
        assert number(tokens) == config.global_batch_size * config.data.max_length
        assert number(count) == math.ceil(number(rows) * number(length) / number(tokens))
    if recipe in SWEEPS:
        loaded = load_sweep(recipe)
        points = list(known_points(loaded))
        models = {point.get("model.path") for point in points}
        assert sum(int(times) for *_, times in lines) * len(models) == len(points) * len(loaded.sweep.seeds)
    return sum(int(number(count)) * int(times or 1) for *_, count, _, times in lines)


@pytest.mark.parametrize("recipe", RECIPES, ids=named)
def test_header_says_what_the_estimate_says(recipe):
    told = FIGURES.findall(recipe.read_text())
    assert told, (
        "no line such as `qwen3-4b on v6e:2x4: 9.98 of 31.25 GiB a device; 0.52 s a step, 9 s in all, at least`"
    )
    count = steps(recipe)
    for model, machine, keys, needed, memory, seconds, total in told:
        overrides = tuple(keys.replace(",", "").split())
        plans = [planned(config, model, machine) for config in configs(recipe, overrides)]
        assert max(plan.needed for plan in plans) / GIB == pytest.approx(float(needed), abs=0.006)
        assert plans[0].topology.device.memory / GIB == pytest.approx(float(memory), abs=0.006)
        assert float(needed) * 1.1 < float(memory), "the estimate may be wrong by a tenth"
        step = max(max(plan.times.values()) for plan in plans)
        assert step == pytest.approx(float(seconds), abs=0.006)
        assert step * count == pytest.approx(number(total), abs=0.6)


@pytest.mark.parametrize("recipe", [*RECIPES, *ON_CPU], ids=named)
def test_header_has_all_its_parts(recipe):
    for part in ("Command", "Hardware", "Memory", "Time"):
        assert f"# {part}:" in recipe.read_text()
    assert re.search("# (Look at|Expect):", recipe.read_text())


def test_the_quickstart_s_memory_is_the_estimate_s():
    header = (CONFIGS / "sweeps" / "quickstart.yaml").read_text()
    [needed] = re.findall(r"smollm2-135m on cpu:1: ([\d.]+) GiB", header)
    config = load_config(CONFIGS.parent / "rdro_jax" / "quickstart" / "rdro.yaml")
    assert planned(config, "smollm2-135m", "cpu:1").needed / GIB == pytest.approx(float(needed), abs=0.006)
