"""`make sweep-faults`: what test_faults.py does with stubs, with `rdro train` itself.

The model is that of the sweep study (30,000 parameters, two layers), not the quickstart's of 135 million: what is asked
here is whether every trial is run once and goes on from its own checkpoint, and a kill asks that of both alike.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.sweep_task import write_task
from rdro_jax.run_files import read_metrics

pytestmark = pytest.mark.skipif("REAL_TRIALS" not in os.environ, reason="make sweep-faults")
HERE = Path(__file__).parent
GRID = {
    "optimizer": {"learning_rate": {"choice": [1.0e-3, 2.0e-3, 3.0e-3]}},
    "loss": {"rdro": {"alpha": {"choice": [0.4, 0.5, 0.6]}}, "ddro": {}},
}
RATES = {"optimizer": {"learning_rate": {"log": [1.0e-4, 1.0e-2]}}}
SWEEPS = {
    "grid": ({"sampler": {"name": "grid"}, "space": GRID}, 12, 10),
    "tpe": ({"sampler": {"name": "tpe"}, "trials": 20, "space": RATES}, 20, 10),
    "random": ({"sampler": {"name": "random"}, "trials": 6, "space": {"loss": {"alpha": {"range": [0.3, 0.7]}}}}, 6, 3),
}
"""Name -> keys of its sweep file, trials, kills of its coordinator."""
STEPS, SAVE_STEPS = 24, 4
SHORT = {"num_train_epochs": 2, "checkpoint": {"save_steps": SAVE_STEPS}, "data": {"eval": None}}


def environment_of(home):
    """One device, and one compilation cache for all: what the first run compiled, the others find."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(home / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""} | cache


@pytest.fixture(scope="module")
def fates(tmp_path_factory):
    """Sweeps that were killed and finished, by name: what was killed, rows of results.jsonl, the sweep's folder."""
    home = tmp_path_factory.mktemp("sweeps")
    common = {"base": str(write_task(home / "task")), "parallel": 2, "set": SHORT, "objective": {"metric": "loss"}}
    jobs = []
    for name, (keys, _, kills) in SWEEPS.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump(common | {"output_dir": str(home / name)} | keys))
        jobs.append((str(home / f"{name}.yaml"), kills))
    began = time.monotonic()
    command = [sys.executable, str(HERE / "host.py"), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(home), check=False)
    assert done.returncode == 0, done.stderr
    fates = {}
    for name, deaths in zip(SWEEPS, json.loads(done.stdout), strict=True):
        assert deaths["code"] == 0, done.stderr
        rows = [json.loads(line) for line in (home / name / "results.jsonl").read_text().splitlines()]
        fates[name] = deaths, rows, home / name
        print(f"\n{name}: {len(rows)} trials, {deaths['coordinators']} coordinators and {deaths['trials']} runs killed")
    print(f"{time.monotonic() - began:.0f} s")
    return fates


@pytest.mark.parametrize("name", SWEEPS)
def test_exactly_its_trials_each_once(fates, name):
    deaths, rows, _ = fates[name]
    _, trials, kills = SWEEPS[name]
    assert [row["state"] for row in rows] == ["complete"] * trials
    assert len({json.dumps(row["point"]) for row in rows}) == trials
    assert deaths["coordinators"] == kills
    assert deaths["trials"] > 0


@pytest.mark.parametrize("name", SWEEPS)
def test_each_run_goes_on_from_its_own_checkpoint(fates, name):
    """No step is missing, none is logged twice, and whoever began again began behind a step that was saved."""
    deaths, rows, _ = fates[name]
    again = []
    for folder in (Path(row["runs"][0]) for row in rows):
        steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        assert steps == [*range(1, STEPS + 1)]
        again += [int(step) for step in re.findall(r"resuming after step (\d+)", (folder / "log.txt").read_text())]
    assert all(step % SAVE_STEPS == 0 for step in again)
    assert 0 < len(again) <= deaths["trials"]


def test_a_killed_run_ends_as_one_that_was_left_alone(fates, tmp_path):
    """The oracle is the same command in another folder, never killed."""
    _, rows, folder = fates["grid"]
    row = max(rows, key=lambda row: (Path(row["runs"][0]) / "log.txt").read_text().count("resuming after step"))
    config = Path(row["runs"][0]) / "config.yaml"
    command = [sys.executable, "-m", "rdro_jax.cli", "train", str(config), f"output_dir={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, env=environment_of(folder.parent))
    assert json.loads((tmp_path / "result.json").read_text())["loss"] == row["value"]


def test_data_reference_and_program_are_made_once(fates):
    """Alpha and learning rate differ, the loss once in the grid: one program for each loss, for 38 trials in all."""
    for _, rows, folder in fates.values():
        logs = "".join((Path(row["runs"][0]) / "log.txt").read_text() for row in rows)
        assert len(re.findall("rows prepared in", logs)) == 1
        assert len([*(folder / "reference_store").glob("*/*.safetensors")]) == 1
    assert len([*(fates["grid"][2].parent / "cache").glob("jit_train_step-*-cache")]) == 2
