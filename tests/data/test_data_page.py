"""docs/data.md says what is there: its configs load, and the keys it names exist."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from rdro_jax.config import load_config
from rdro_jax.data import DataConfig

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
KEYS = {field.name for field in dataclasses.fields(DataConfig)}


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.S))
def test_configs_load(block, tmp_path):
    rest = {"output_dir": "run", "model": {"path": "base"}, "loss": {"name": "rdro"}}
    (tmp_path / "rest.yaml").write_text(json.dumps(rest))
    (tmp_path / "page.yaml").write_text("defaults: [rest.yaml]\n" + block)
    assert len(load_config(tmp_path / "page.yaml").data.train) == 2


def test_keys_exist():
    named = set(re.findall(r"data\.(?!md|json)(\w+)", PAGE))
    assert len(named) > 6
    assert named <= KEYS


def test_settings_are_all_told():
    settings = {"truncation", "batching", "max_prompt_length", "max_completion_length", "slots", "column_map"}
    assert settings <= set(re.findall(r"\w+", PAGE))
    assert "prompts_in_train" in PAGE
