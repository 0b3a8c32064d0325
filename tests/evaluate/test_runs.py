"""KL both ways of a run, beside that of folders which hold the same models."""

import jax
import pytest
from tiny import write_folder

from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate import evaluate
from rdro_jax.export import export
from rdro_jax.models import load_model, save_model
from rdro_jax.train import train

COMPLETIONS = {"completions": 3, "max_new_tokens": 5}
LORA = ["model.lora.r=4", "model.lora.lora_alpha=32"]


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """One of the simulated devices: how a model lies over several is the business of test_likelihood."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("runs"))
    (folder / "run.yaml").write_text(f"""
output_dir: {folder / "run"}
max_steps: 4
global_batch_size: 8
model: {{path: {folder / "model"}}}
reference: {{store: {folder / "store"}}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "eval.jsonl"}, max_length: 32, slots: 4}}
loss: {{name: rdro}}
optimizer: {{learning_rate: 3.0e-2}}
checkpoint: {{save_steps: 2}}
report_to: []
""")
    return folder


def run(home, name, *overrides):
    return train(load_config(home / "run.yaml", [f"output_dir={home / name}", *overrides])).run_dir


def sampled(told):
    """Figures and intervals of both directions."""
    figures = {name: value for name, value in told.items() if name.startswith(("on_policy/", "on_reference/"))}
    assert len(figures) == 6
    return [*figures.values(), *(end for name in figures for end in told["intervals"][name])]


@pytest.mark.parametrize("how", [LORA, ["model.dtype=bfloat16", "model.compute_dtype=bfloat16"]])
def test_a_checkpoint_is_the_folder_that_is_exported_from_it(how, home, tmp_path):
    folder = run(home, f"run-{'-'.join(how)}", *how)
    export(folder, tmp_path / "exported", step=2)
    named = {"reference": home / "model", "data": home / "eval.jsonl", "max_length": 32}
    if "model.dtype=bfloat16" in how:  # the run's reference is the starting policy as the run holds it
        named["reference"] = bfloat16(home / "model", tmp_path / "reference")
    wanted = evaluate(tmp_path / "exported", **named, **COMPLETIONS)
    told = evaluate(folder / "checkpoint-2", **COMPLETIONS)
    assert min(wanted["on_policy/kl"], wanted["on_reference/kl"]) > 0.05
    assert sampled(told) == pytest.approx(sampled(wanted), abs=2e-5)


def bfloat16(folder, out):
    save_model(*load_model(folder, dtype="bfloat16"), out, base=folder)
    return out


def test_the_reference_of_a_run_from_an_adapter_has_it(home):
    """Not the model beneath: a run's reference is the policy it started from."""
    first = run(home, "first", *LORA)
    second = run(home, "second", *LORA, f"model.lora.adapter={first / 'adapter'}")
    wanted = evaluate(second, reference=first, **COMPLETIONS)  # where the first run's adapter is merged
    told = evaluate(second, **COMPLETIONS)
    assert sampled(told) == pytest.approx(sampled(wanted), abs=1e-4)
    beneath = evaluate(second, reference=home / "model", **COMPLETIONS)
    assert beneath["on_reference/kl"] != pytest.approx(wanted["on_reference/kl"], abs=1e-2)


def test_several_processes_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="got 2 processes; samples and completions want a single one"):
        evaluate("nowhere", **COMPLETIONS)
