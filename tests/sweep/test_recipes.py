"""configs/sweeps and docs/sweeps.md: every sweep they show loads, and says what it would run."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.sweep_task import make_pairs
from rdro_jax.sweep.points import dry_run
from rdro_jax.sweep.spec import Sweep, load_sweep

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
RUNS = {"losses": 24, "paper": 72, "quickstart": 4, "study": 18}
"""Commands that a dry run prints: points x seeds; of tpe, its random start."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout's configs, and what the recipes start from, in a folder to work in."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "rdro_jax" / "quickstart", tmp_path / "rdro_jax" / "quickstart")
    task = tmp_path / "runs" / "sweep-task" / "run.yaml"
    task.parent.mkdir(parents=True)
    task.write_text("{output_dir: a, model: {path: b}, data: {train: t.jsonl, eval: e.jsonl}, loss: {name: rdro}}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_have_their_header(home, recipe):
    file = Path("configs", "sweeps", recipe.name)
    lines = [line for line in dry_run(file) if not line.startswith("#")]
    assert len(lines) == RUNS[recipe.stem]
    assert str(load_sweep(file).folder) == f"runs/sweeps/{recipe.stem}"
    assert all(f"# {word}:" in recipe.read_text() for word in ("Command", "Hardware", "Expect"))


def test_the_page_s_sweep_loads_and_tells_every_key(home):
    page = (ROOT / "docs" / "sweeps.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.S)
    Path("configs", "sweeps", "page.yaml").write_text(block)
    assert load_sweep("configs/sweeps/page.yaml").sweep.parallel == 4
    assert {*Sweep.model_fields} <= {*re.findall(r"\w+", page)}


def test_the_task_prefers_the_front_of_the_alphabet():
    import numpy as np

    pairs = make_pairs(200, np.random.default_rng(0))
    front = {
        kind: np.mean([[c < "n" for c in pair[kind].split()] for pair in pairs]) for kind in ("chosen", "rejected")
    }
    assert front["chosen"] == pytest.approx(0.75, abs=0.05)
    assert front["rejected"] == pytest.approx(0.25, abs=0.05)
