"""Every config of the project loads, and says what its header promises."""

from pathlib import Path

import pytest

from rdro_jax.config import load_config
from rdro_jax.losses import RDRO, SFT

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
OTHERS = ("base", "models", "clusters", "sweeps")
"""Folders whose files are no configs of a run; tests of their own hold them."""
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in OTHERS]
RECIPES += sorted((ROOT / "rdro_jax" / "quickstart").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads_and_survives_a_dump(path, tmp_path):
    config = load_config(path)
    dump = tmp_path / "dump.yaml"
    dump.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(dump) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_header_gives_the_command(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("rdro " in line for line in header)


def test_every_base_is_used():
    used = {name for path in RECIPES for name in (CONFIGS / "base").glob("*.yaml") if name.name in path.read_text()}
    assert used == set((CONFIGS / "base").glob("*.yaml"))


def test_rdro_has_the_papers_hyper_parameters():
    config = load_config(CONFIGS / "rdro.yaml")
    optimizer = config.optimizer
    assert config.loss == RDRO(alpha="data")
    assert (optimizer.learning_rate, optimizer.lr_scheduler_type, optimizer.warmup_ratio) == (5e-7, "cosine", 0.1)
    assert (optimizer.max_grad_norm, config.num_train_epochs) == (1.0, 1)
    assert load_config(CONFIGS / "sft.yaml").loss == SFT(on="all")
