"""What is found before a model is loaded: by `rdro doctor` in a table, by `rdro train` as its exit code."""

import importlib.metadata
import shutil
import sys
from types import SimpleNamespace

import jax
import pytest

from rdro_jax import cli
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError, RecordError, StorageError
from rdro_jax.train import preflight
from rdro_jax.train.preflight import examine

ASKED = ["versions", "devices", "secrets", "model", "data", "layout", "memory", "run folder"]


ROWS = "global_batch_size=16"


def faults(config, **how):
    return {finding.question: finding.fault for finding in examine(config, **how) if finding.fault is not None}


def test_a_good_config_has_an_answer_to_everything(config_file, capsys):
    findings = list(examine(load_config(config_file, [ROWS])))
    assert [finding.question for finding in findings] == ASKED
    assert [finding for finding in findings if finding.fault or finding.warning] == []
    assert cli.main(["doctor", str(config_file), ROWS]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok ") == len(ASKED)
    assert "= 8 devices in 1 processes" in " ".join(out.split())
    assert not (config_file.parent / "run").exists()


def test_the_exit_code_is_that_of_the_first_fault(config_file, capsys):
    assert cli.main(["doctor", str(config_file), "data.train=no.jsonl", "mesh.fsdp=3"]) == 3
    out, err = capsys.readouterr()
    assert out.count("fault") == 2
    assert "data.train: no file 'no.jsonl'" in err.splitlines()[-1]
    assert set(faults(load_config(config_file, ["mesh.fsdp=3", "global_batch_size=6"]))) == {"layout"}
    assert cli.main(["doctor"]) == 0


def test_secrets_are_told_by_name(config_file, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert cli.main(["doctor", str(config_file), ROWS]) == 0
    told = "".join(capsys.readouterr())
    assert "HF_TOKEN is set, WANDB_API_KEY is not set" in " ".join(told.split())
    assert "canary" not in told


def test_room_for_all_checkpoints_and_the_model_is_asked_for(config_file, monkeypatch):
    """By hand: 3 checkpoints of parameters, two moments, step and count, and the parameters once more, float32."""
    config = load_config(config_file, [ROWS])
    free = [0]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free[0]))
    from tiny import CONFIG

    d, ff, heads, kv = CONFIG.d_model, CONFIG.d_ff, 32, 16
    layer = 2 * d + d * heads + heads + 2 * (d * kv + kv) + heads * d + 3 * d * ff
    params = CONFIG.vocab_size * d + CONFIG.n_layers * layer + d
    best = load_config(config_file, [ROWS, "checkpoint.metric_for_best_model=eval_loss"])
    for there, asked, more in ((0, config, 3), (0, best, 4), (2, best, 2), (2, config, 1)):
        for step in range(there):  # what a stopped run left takes no room a second time
            (config_file.parent / "run").mkdir(exist_ok=True)
            (config_file.parent / "run" / f"checkpoint-{step}.manifest.json").write_text("{}")
        needed = 4 * (more * 3 * params + params)
        for free[0] in (needed - 1, needed + 1000):
            assert isinstance(faults(asked).get("run folder"), StorageError) == (free[0] < needed)
    free[0] = 0
    monkeypatch.setattr(sys.modules["rdro_jax.train.loop"], "locked", lambda config: pytest.fail("the run began"))
    assert cli.main(["train", str(config_file), ROWS]) == 5


def test_a_folder_that_cannot_be_made(config_file):
    config = load_config(config_file, [ROWS, f"output_dir={config_file}/run"])
    assert isinstance(faults(config)["run folder"], StorageError)


def test_a_missing_file_leaves_the_other_questions(config_file):
    found = faults(load_config(config_file, [ROWS, "data.train=no.jsonl"]))
    assert list(found) == ["data"]
    assert isinstance(found["data"], RecordError)


def test_an_estimate_beyond_the_device_is_a_fault(config_file, monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 2**30})
    monkeypatch.setattr(preflight.jax, "local_devices", lambda: [device])
    config = load_config(config_file, [ROWS])
    for needed, tight in ((2**30, False), (1.05 * 2**30, True)):
        findings = list(examine(config, bytes_needed=lambda config, policy, needed=needed: needed))
        assert [finding for finding in findings if finding.fault] == []
        assert [finding.question for finding in findings if finding.warning] == ["memory"] * tight
    fault = faults(config, bytes_needed=lambda config, policy: 3 * 2**30)["memory"]
    assert isinstance(fault, ConfigError)
    assert "about 3.0 GiB of each device, which has 1.0" in str(fault)


def test_training_asks_what_doctor_asks_before_it_loads_a_model(config_file, monkeypatch, capsys):
    from rdro_jax.cli import doctor

    trained = importlib.import_module("rdro_jax.train")
    monkeypatch.setattr(trained, "train", lambda config: print("trained"))
    assert cli.main(["train", str(config_file), ROWS]) == 0
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in err.splitlines()] == ["devices", "secrets", "memory"]
    assert out == "trained\n"
    monkeypatch.setattr(
        preflight.jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1})]
    )
    assert cli.main(["train", str(config_file), ROWS]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "GiB of each device, which has 0.0" in err
    asked = []
    monkeypatch.setattr(doctor, "_bytes_needed", lambda *_: asked.append(1) or 0)
    cli.main(["doctor", str(config_file), ROWS])
    assert asked == [1]


def test_an_untested_version_is_a_warning(monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "jax" else version(name))
    finding = next(examine(None))
    assert (finding.warning, finding.fault) == (True, None)
    assert "not tested: jax 9.9 (tested: " in finding.answer
    assert jax.__version__ != "9.9"


def test_versions_are_those_of_this_python(monkeypatch):
    """jax is asked for twice, by the Python there is; optuna by an extra only."""
    here, elsewhere = ("<", ">=") if sys.version_info < (3, 12) else (">=", "<")
    asked = [
        f"jax=={jax.__version__}; python_version {here} '3.12'",
        f"jax==9.9; python_version {elsewhere} '3.12'",
        "optuna==9.9; extra == 'sweep'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert preflight.check_versions().startswith("1 packages as tested: jax ")
    asked[0] = f"jax==9.8; python_version {here} '3.12'"
    assert preflight.check_versions() == f"warning: not tested: jax {jax.__version__} (tested: ==9.8)"
