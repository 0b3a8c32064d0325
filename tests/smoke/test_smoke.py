"""`rdro train --smoke`: what it replaces, what it keeps, and that recipes run by it. `make smoke` runs all of them."""

import json
import math
from pathlib import Path

import pytest
from recipes import CONFIGS, RECIPES

from rdro_jax import cli
from rdro_jax.config import load_config
from rdro_jax.data import Source
from rdro_jax.models import ModelConfig
from rdro_jax.smoke.run import shrink, smoke
from rdro_jax.smoke.standins import tiny_like, write_rows
from rdro_jax.sweep.spec import load_sweep

CHEAP = ("model.compute_dtype=float32", "model.remat=none", "num_microbatches=1")
"""What a compile costs most by; `make test` runs one recipe, without these."""


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param(CONFIGS / "iterated.yaml", CHEAP, id="cheap"),
        *(pytest.param(path, (), marks=pytest.mark.smoke, id=str(path.relative_to(CONFIGS))) for path in RECIPES),
    ],
)
def test_recipe_runs(recipe, changes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--smoke", str(recipe), *changes]) == 0
    assert "3 steps of" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def paper_grid():
    """Configs of the paper's sweep that together show each loss, model and data set of it."""
    sweep, seen = load_sweep(CONFIGS / "sweeps" / "paper.yaml"), set()
    for point in sweep.space.probes():
        if not seen >= point.items():
            seen |= point.items()
            name = "-".join(Path(str(point[key])).stem for key in ("loss.name", "model.path", "base"))
            yield pytest.param(sweep.config(point), id=name)


@pytest.mark.smoke
@pytest.mark.parametrize("config", list(paper_grid()))
def test_the_papers_grid_runs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert math.isfinite(smoke(config))
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "ddro": "qwen3-0.6b",
    "kto": "qwen2.5-3b",
    "apo_zero_unpaired": "llama-3.2-3b",
    "bco": "qwen3-30b-a3b",
    "dpo": "llama-3.1-8b",
    "simpo": "qwen3-8b",
    "cpo": "qwen2.5-1.5b",
    "orpo": "llama-3.2-1b",
}
"""Losses of no recipe here, each with an architecture."""


@pytest.mark.smoke
@pytest.mark.parametrize("loss", OTHERS)
def test_other_losses_and_families_run(loss):
    changes = [f"model.path={CONFIGS / 'models' / OTHERS[loss]}.yaml", f"loss={{name: {loss}}}"]
    assert cli.main(["train", "--smoke", str(CONFIGS / "rdro.yaml"), *changes]) == 0


def test_a_stand_in_has_the_options_of_its_preset():
    """Beside each other: what presets say of an architecture and what their stand-ins say."""
    for file in sorted((CONFIGS / "models").glob("*.yaml")):
        text, tiny = file.read_text(), tiny_like(str(file))
        assert f"model_type: {tiny.model_type}" in text
        assert f"tie_word_embeddings: {str(tiny.tie_word_embeddings).lower()}" in text
        assert ("rope_type: llama3" in text) == (tiny.rope.kind == "llama3")
        assert (tiny.moe is not None) == ("num_experts" in text)
        assert tiny.qkv_bias == (tiny.model_type == "qwen2")
        assert tiny.n_heads > tiny.n_kv_heads
        assert tiny.d_model == 32


@pytest.mark.parametrize(
    ("name", "family"),
    [("hub:Qwen/Qwen3-4B", "qwen3"), ("hub:Qwen/Qwen2.5-3B", "qwen2"), ("models/base", "llama")],
)
def test_a_name_tells_the_family(name, family):
    assert isinstance(tiny_like(name), ModelConfig)
    assert tiny_like(name).model_type == family


def test_rows_stand_under_the_columns_of_their_source(tmp_path):
    columns = (("completion", "answer.text"), ("label", "stars"))
    source = Source("ratings.parquet", split="train", column_map=columns, label_threshold=4.0, weight=2.0)
    written = write_rows(tmp_path / "rows.jsonl", source, prompts=2, paired=False)
    rows = [json.loads(line) for line in Path(written.path).read_text().splitlines()]
    assert [row["stars"] for row in rows] == [4.0, 3.0, 4.0, 3.0]
    assert rows[0]["answer"]["text"][0]["role"] == "assistant"
    assert (written.column_map, written.label_threshold, written.split) == (columns, 4.0, None)


def test_nothing_is_kept_outside(tmp_path):
    outside = ["checkpoint.mirror=gs://bucket/run", "reference.store=a", "data.prepared=b", "compilation_cache=c"]
    small = shrink(load_config(CONFIGS / "rdro.yaml", outside), tmp_path)
    assert (small.checkpoint.mirror, small.compilation_cache) == (None, None)
    assert (small.reference.store, small.data.prepared) == (None, None)


def test_what_is_the_recipes_own_stays(tmp_path):
    config = load_config(CONFIGS / "iterated.yaml", ["optimizer.mu_dtype=bfloat16", "data.batching=balanced"])
    small = shrink(config, tmp_path)
    assert (small.loss, small.optimizer.mu_dtype, small.data.batching) == (config.loss, "bfloat16", "balanced")
    assert (small.model.compute_dtype, small.model.remat, small.num_microbatches) == ("bfloat16", "full", 2)
    assert small.data.heldout_fraction == 0.1
    assert Path(small.model.path).parent == Path(small.output_dir).parent == tmp_path
