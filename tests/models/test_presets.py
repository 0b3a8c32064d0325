"""Presets against the figures published with the models: exact totals, and the model cards' rounded shares."""

import math
from pathlib import Path

import jax
import pytest
import yaml

from rdro_jax.errors import ConfigError
from rdro_jax.models import abstract_params, load_preset

FOLDER = Path(__file__).parents[2] / "configs" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

# "Number of Parameters (Non-Embedding)" of the model cards, in thousand millions as printed there. Not those of
# Qwen 2.5 14B to 72B, which are printed 0.1 to 0.2 below what the files hold.
NON_EMBEDDING = {
    "qwen2.5-0.5b": "0.36", "qwen2.5-1.5b": "1.31", "qwen2.5-3b": "2.77", "qwen2.5-7b": "6.53", "qwen3-0.6b": "0.44",
    "qwen3-1.7b": "1.4", "qwen3-4b": "3.6", "qwen3-8b": "6.95", "qwen3-14b": "13.2", "qwen3-32b": "31.2",
    "qwen3-30b-a3b": "29.9",
}  # fmt: skip


def counts(name):
    shapes = abstract_params(load_preset(FOLDER / f"{name}.yaml"))
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    tables = [shapes[table]["embedding"] for table in ("embed_tokens", "lm_head") if table in shapes]
    return total, total - sum(math.prod(table.shape) for table in tables)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name):
    assert counts(name)[0] == yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["parameters"]


@pytest.mark.parametrize("name", NON_EMBEDDING)
def test_non_embedding_count_rounds_to_the_model_cards(name):
    printed = NON_EMBEDDING[name]
    decimals = len(printed.partition(".")[2])
    assert f"{counts(name)[1] / 1e9:.{decimals}f}" == printed


def test_the_sizes_people_use_are_there():
    assert {name.rpartition("-")[0] for name in NAMES} >= {"qwen2.5", "qwen3", "llama-3.1", "llama-3.2"}
    assert len(NAMES) == 19


def test_a_missing_or_useless_preset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such preset; beside it are: .*qwen3-8b"):
        load_preset(FOLDER / "qwen3-8.yaml")
    for text in ("config: {model_type: gemma}", "config: [", "hub: x", "config: {model_type: llama}"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ConfigError, match="not a preset") as caught:
            load_preset(tmp_path / "p.yaml")
        assert "\n" not in str(caught.value)
