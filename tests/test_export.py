"""The exported folder is the checkpoint: its numbers, in the type the run held them in, with its tokenizer."""

import jax
import numpy as np
import pytest
from tiny import CONFIG, write_folder

from rdro_jax.checkpoint import CheckpointConfig, CheckpointWriter
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.export import export
from rdro_jax.models import init_params, load_model


@pytest.mark.parametrize(("dtype", "devices"), [("float32", 8), ("bfloat16", 3)])
def test_numbers_and_type_are_those_of_the_checkpoint(dtype, devices, tmp_path):
    """Also of a run on devices that this machine has not."""
    home, run = write_folder(tmp_path), tmp_path / "run"
    (home / "run.yaml").write_text("loss: {name: rdro}")
    paths = [f"output_dir={run}", f"model.path={home / 'model'}", f"data.train={home / 'train.jsonl'}"]
    run.mkdir()
    (run / "config.yaml").write_text(
        load_config(home / "run.yaml", [*paths, f"model.dtype={dtype}", f"mesh.fsdp={devices}"]).to_yaml()
    )
    writer = CheckpointWriter(run, CheckpointConfig())
    saved = {step: init_params(CONFIG, jax.random.key(step), dtype=dtype) for step in (1, 2)}
    for step, params in saved.items():
        writer.save(step, {"params": params}, {})
    writer.wait()
    lines = ['{"step": 1, "eval_auc": 0.75}', '{"step": 2, "eval_auc": 0.9}', '{"step": 1, "torn']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert export(run, tmp_path / "newest") == tmp_path / "newest"
    export(run, tmp_path / "first", step=1)
    for name, step in (("newest", 2), ("first", 1)):
        exported, _ = load_model(tmp_path / name, dtype=dtype)
        jax.tree.map(np.testing.assert_array_equal, exported, saved[step])
    card = (tmp_path / "first" / "README.md").read_text()
    count = sum(leaf.size for leaf in jax.tree.leaves(saved[1]))
    assert "after 1 steps of rdro\n" in card
    assert f"{count:,} parameters in {dtype}." in card
    assert "| eval_auc | 0.75 |" in card
    assert "0.9" not in card.split("## Configuration")[0]
    head = (tmp_path / "newest" / "model.safetensors").read_bytes()[:4000]
    assert (b'"BF16"' in head, b'"F32"' in head) == (dtype == "bfloat16", dtype == "float32")
    assert (tmp_path / "newest" / "tokenizer.json").read_bytes() == (home / "model" / "tokenizer.json").read_bytes()


def test_a_run_without_adapters_has_none_to_export(tmp_path):
    home, run = write_folder(tmp_path), tmp_path / "run"
    (home / "run.yaml").write_text("loss: {name: rdro}")
    paths = [f"output_dir={run}", f"model.path={home / 'model'}", f"data.train={home / 'train.jsonl'}"]
    run.mkdir()
    (run / "config.yaml").write_text(load_config(home / "run.yaml", paths).to_yaml())
    writer = CheckpointWriter(run, CheckpointConfig())
    writer.save(1, {"params": init_params(CONFIG, jax.random.key(0))}, {})
    writer.wait()
    with pytest.raises(ConfigError, match="leave out --adapter"):
        export(run, tmp_path / "out", adapter=True)
