"""Every config of the project loads, and says what its header promises."""

from pathlib import Path

import pytest
from recipes import CONFIGS, RECIPES

from rdro_jax.config import load_config
from rdro_jax.losses import RDRO, SFT

ROOT = Path(__file__).parents[2]
RUNS = [*RECIPES, *sorted((CONFIGS / "data").glob("*.yaml"))]
RUNS += sorted((ROOT / "rdro_jax" / "quickstart").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads_and_survives_a_dump(path, tmp_path):
    config = load_config(path)
    dump = tmp_path / "dump.yaml"
    dump.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(dump) == config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(ROOT)))
def test_header_gives_the_command(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("rdro " in line for line in header)


def test_every_base_is_used():
    used = {name for path in RUNS for name in (CONFIGS / "base").glob("*.yaml") if name.name in path.read_text()}
    assert used == set((CONFIGS / "base").glob("*.yaml"))


def test_rdro_has_the_papers_hyper_parameters():
    config = load_config(CONFIGS / "rdro.yaml")
    optimizer = config.optimizer
    assert config.loss == RDRO(alpha="data")
    assert (optimizer.learning_rate, optimizer.lr_scheduler_type, optimizer.warmup_ratio) == (5e-7, "cosine", 0.1)
    assert (optimizer.max_grad_norm, config.num_train_epochs) == (1.0, 1)
    assert load_config(CONFIGS / "sft.yaml").loss == SFT(on="all")


def test_recipes_are_those_of_the_documents():
    """A folder of configs that is neither a recipe's nor a part's is told here, before it is planned and run."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    folders = {path.relative_to(CONFIGS).parts[0] for path in RECIPES}
    assert [name for name in sorted(folders) if f"`configs/{name}" not in page] == []
