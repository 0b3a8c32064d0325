"""Whole runs with losses that read more than unpaired rows: pairs, mismatched rows, each prompt's alpha."""

import json
import sys

import jax
import numpy as np
import pytest

from rdro_jax import cli
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError, RecordError
from rdro_jax.run_files import read_metrics
from rdro_jax.train import train

SHORT = ("mesh.data=1", "mesh.fsdp=1", "num_train_epochs=2")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


@pytest.fixture
def paired_files(folder, tmp_path):
    """The unpaired rows of the tiny folder as pairs: each liked completion against one that was not."""
    overrides = []
    for name in ("train", "eval"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        liked, other = ([row for row in rows if row["label"] is label] for label in (True, False))
        pairs = [
            {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"]}
            for a, b in zip(liked, other, strict=False)
        ]
        file = tmp_path / f"{name}_pairs.jsonl"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        overrides.append(f"data.{name}={file}")
    return overrides


def run(config_file, *overrides):
    result = train(load_config(config_file, (*SHORT, *overrides)))
    return result, [line for line in read_metrics(result.run_dir / "metrics.jsonl") if "loss" in line]


def test_kto_measures_its_kl_on_mismatched_rows(config_file):
    result, lines = run(config_file, "loss.name=kto", "loss.beta=0.5")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4)  # policy = reference
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert any(abs(line["kl"]) > 1e-3 for line in lines[1:])
    assert lines[-1]["rewards/margins"] > 0.3
    assert np.isfinite(result.metrics["eval_kl"])


def test_dpo_learns_from_pairs(config_file, paired_files):
    result, lines = run(config_file, "loss.name=dpo", "loss.beta=0.5", *paired_files)
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert all(line["counts/chosen"] == line["counts/rejected"] > 0 for line in lines)
    assert lines[-1]["rewards/margins"] > 0.3
    assert result.metrics["eval_loss"] < np.log(2)


def test_an_unpaired_loss_takes_pairs_apart(config_file, paired_files):
    result, lines = run(config_file, "max_steps=2", *paired_files)
    report = json.loads((result.run_dir / "data_report.json").read_text())["train"]
    assert report["format"] == "paired"
    assert report["alpha"] == 0.5
    assert lines[0]["loss"] == pytest.approx(2 * np.log(2), abs=0.2)


def test_a_paired_loss_refuses_unpaired_rows_before_the_model_is_loaded(config_file, monkeypatch):
    monkeypatch.setattr(
        sys.modules["rdro_jax.train.dataset"], "load_model", lambda *_, **__: pytest.fail("loaded a model")
    )
    with pytest.raises(RecordError, match=r"the rows are unpaired .*loss\.name=rdro"):
        run(config_file, "loss.name=dpo")
    with pytest.raises(ConfigError, match=r"data\.slots: got 3, wanted an even number"):
        run(config_file, "loss.name=dpo", "data.slots=3")


def test_alpha_of_each_prompt_comes_from_the_column(config_file, folder, tmp_path):
    """With one alpha for every prompt in the column, the offset form is plain RDRO with that alpha."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    file = tmp_path / "with_alpha.jsonl"
    share = sum(row["label"] for row in rows) / len(rows)
    file.write_text("".join(json.dumps(row | {"alpha": share}) + "\n" for row in rows))
    own, _ = run(config_file, "max_steps=3", f"data.train={file}", "data.eval=null", "loss.alpha=prompt")
    plain, _ = run(config_file, "max_steps=3", "data.eval=null", f"output_dir={tmp_path / 'plain'}")
    assert own.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    file.write_text("".join(json.dumps(row | {"alpha": 0.2 + 0.6 * row["label"]}) + "\n" for row in rows))
    varied = (f"data.train={file}", "data.eval=null", "loss.alpha=prompt", f"output_dir={tmp_path / 'varied'}")
    other, _ = run(config_file, "max_steps=3", *varied)
    assert abs(other.metrics["loss"] - plain.metrics["loss"]) > 1e-2


def test_alpha_is_estimated_only_by_a_policy_that_tells_the_classes_apart(config_file, folder, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"loss\.alpha: estimate wants a policy that tells the classes apart"):
        run(config_file, "loss.alpha=estimate")
    trained, _ = run(config_file)
    again = (
        f"model.path={trained.run_dir}",
        f"reference.path={folder / 'model'}",
        "loss.alpha=estimate",
        "max_steps=2",
    )
    result, _ = run(config_file, *again, f"output_dir={tmp_path / 'again'}")
    found = json.loads((result.run_dir / "alpha.json").read_text())
    assert 0 < found["low"] <= found["value"] <= found["high"] < 1
    assert found["value"] == pytest.approx(trained.metrics["eval_alpha_hat/value"], rel=1e-3)
    assert f"alpha {found['value']:.4f}" in capsys.readouterr().err
    blind = (f"model.path={folder / 'model'}", f"reference.path={trained.run_dir}", "loss.alpha=estimate")
    assert cli.main(["train", str(config_file), *SHORT, *blind, f"output_dir={tmp_path / 'blind'}"]) == 2
    assert "loss.alpha: estimate: got" in capsys.readouterr().err
