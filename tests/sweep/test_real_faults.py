"""`make sweep-faults`: what test_faults.py does with stubs, with `rdro train` itself.

The model has the architecture, the head size and the vocabulary of the quickstart's SmolLM2-135M (49,152 words) at a
third of its width and of its layers: 13,373,376 parameters. The whole one takes seconds for a step on two cores, and
1.6 GB for a checkpoint: hours for 38 trials, of which many are begun several times.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.sweep_task import N_TRAIN, write_task
from rdro_jax.models import ModelConfig
from rdro_jax.run_files import read_metrics

pytestmark = pytest.mark.skipif("REAL_TRIALS" not in os.environ, reason="make sweep-faults")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = ModelConfig(
    "llama",
    vocab_size=49152,
    d_model=192,
    n_layers=10,
    n_heads=3,
    n_kv_heads=1,
    head_dim=64,
    d_ff=512,
    tie_word_embeddings=True,
    remat="none",
)
GRID = {
    "optimizer": {"learning_rate": {"choice": [1.0e-3, 2.0e-3, 3.0e-3]}},
    "loss": {"rdro": {"alpha": {"choice": [0.4, 0.5, 0.6]}}, "ddro": {}},
}
RATES = {"optimizer": {"learning_rate": {"log": [1.0e-4, 1.0e-2]}}}
ALPHAS = {"loss": {"alpha": {"range": [0.3, 0.7]}}}
TEN = {"coordinator": 3, "both": 3, "run": 2, "save": 2}
SWEEPS = {
    "grid": ({"sampler": {"name": "grid"}, "space": GRID}, 12, TEN),
    "tpe": ({"sampler": {"name": "tpe"}, "trials": 20, "space": RATES}, 20, TEN),
    "random": ({"sampler": {"name": "random"}, "trials": 6, "space": ALPHAS}, 6, {"coordinator": 1, "both": 2}),
}
"""Name -> keys of its sweep file, trials, moments at which something is killed by what it is (real_host.py)."""
PARALLEL = 2
PART = 0.8
"""Of the time that a sweep takes if it is left alone, in which the moments lie: its last trials may be quick."""
STEPS, SAVE_STEPS = 24, 6
SHORT = {"num_train_epochs": 2, "checkpoint": {"save_steps": SAVE_STEPS}, "data": {"eval": None}}
EXAMPLES = 2 * N_TRAIN


def environment_of(cache):
    """One device, and one compilation cache for all: what the first run compiled, the others find."""
    ours = (ROOT, ROOT / "tests", ROOT / "tests" / "faults")
    path = os.pathsep.join([*map(str, ours), os.environ.get("PYTHONPATH", "")])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""} | cache


def seconds_of_a_run(config, home):
    """Wall time of one run by itself, the second in its folder of programs and reference log-probs: nothing is made."""
    words = [f"{key}={json.dumps(value)}" for key, value in SHORT.items()] + [f"reference.store={home}/store"]
    for name in ("first", "second"):
        began = time.monotonic()
        command = [sys.executable, "-m", "rdro_jax.cli", "train", str(config), f"output_dir={home / name}", *words]
        subprocess.run(command, check=True, capture_output=True, env=environment_of(home / "cache"))
    return time.monotonic() - began


@pytest.fixture(scope="module")
def fates(tmp_path_factory):
    """Sweeps that were killed and finished, by name: what was killed, rows of results.jsonl, the sweep's folder."""
    home = tmp_path_factory.mktemp("sweeps")
    base = write_task(home / "task", MODEL)
    alone = seconds_of_a_run(base, home / "alone")
    common = {"base": str(base), "parallel": PARALLEL, "restarts": 99, "set": SHORT, "objective": {"metric": "loss"}}
    jobs = []
    for name, (keys, trials, kills) in SWEEPS.items():
        (home / f"{name}.yaml").write_text(yaml.safe_dump(common | {"output_dir": str(home / name)} | keys))
        jobs.append((str(home / f"{name}.yaml"), PART * alone * trials / PARALLEL, kills))
    began = time.monotonic()
    command = [sys.executable, str(HERE / "real_host.py"), json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(home / "cache"), check=False)
    assert done.returncode == 0, done.stderr
    fates = {}
    for name, deaths in zip(SWEEPS, json.loads(done.stdout), strict=True):
        assert deaths["code"] == 0, done.stderr
        rows = [json.loads(line) for line in (home / name / "results.jsonl").read_text().splitlines()]
        fates[name] = deaths, rows, home / name
        killed = f"{deaths['coordinators']} coordinators and {len(deaths['runs'])} runs killed"
        print(f"\n{name}: {len(rows)} trials, {killed}, {deaths['in_save']} of them in a save")
    print(f"{alone:.0f} s for a run by itself, {time.monotonic() - began:.0f} s for the sweeps")
    return fates


@pytest.mark.parametrize("name", SWEEPS)
def test_exactly_its_trials_each_once(fates, name):
    deaths, rows, _ = fates[name]
    _, trials, kills = SWEEPS[name]
    assert [row["state"] for row in rows] == ["complete"] * trials
    assert len({json.dumps(row["point"]) for row in rows}) == trials
    assert deaths["coordinators"] == kills["coordinator"] + kills["both"]
    assert deaths["in_save"] == kills.get("save", 0)
    assert len(deaths["runs"]) >= sum(kills.values()) - kills["coordinator"]


@pytest.mark.parametrize("name", SWEEPS)
def test_each_run_goes_on_from_its_own_checkpoint(fates, name):
    """No step is missing, none is logged twice; whoever began again began behind what it had saved when it was killed,
    unless it was killed once more before it could say so."""
    deaths, rows, _ = fates[name]
    resumed = 0
    for folder in (Path(row["runs"][0]) for row in rows):
        steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        assert steps == [*range(1, STEPS + 1)]
        again = [int(step) for step in re.findall(r"resuming after step (\d+)", (folder / "log.txt").read_text())]
        saved = iter([step for run, step in deaths["runs"] if run == str(folder) and step])
        assert all(step in saved for step in again), folder  # in this order
        resumed += len(again)
    assert resumed > 0 or "save" not in SWEEPS[name][2]  # three kills may all fall before a run has saved


def test_killed_runs_end_as_they_do_when_they_are_left_alone(fates, tmp_path):
    """Every run that was killed: all numbers of its state, its metrics and its weights."""
    runs = list(dict.fromkeys(run for deaths, _, _ in fates.values() for run, _ in deaths["runs"]))
    assert len(runs) > len(SWEEPS)
    environment = environment_of(fates["grid"][2].parent / "cache")
    halves = [(tmp_path / str(number), runs[number::PARALLEL]) for number in range(PARALLEL)]
    commands = [[sys.executable, str(HERE / "left_alone.py"), str(scratch), *half] for scratch, half in halves]
    started = [subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) for command in commands]
    told = [json.loads(process.communicate()[0]) for process in started]
    assert {run: alike for each in told for run, alike in each.items()} == dict.fromkeys(runs, True)


def test_data_reference_and_program_are_made_once(fates):
    """By what the runs say that they have done: learning rate and alpha differ, the loss once in the grid."""
    compiled, found = 0, 0
    for _, rows, _ in fates.values():
        logs = [(Path(row["runs"][0]) / "log.txt").read_text() for row in rows]
        assert len([*itertools.chain(*(re.findall("rows prepared in", log) for log in logs))]) == 1
        computed = itertools.chain(*(re.findall(r"computed (\d+) reference log-probs", log) for log in logs))
        assert sum(map(int, computed)) == EXAMPLES
        compiled += sum(log.count("\ncompiled the step in ") for log in logs)
        found += sum(log.count("\nfound the compiled step in the cache ") for log in logs)
        assert all("compiled step in the cache" in log or "\ncompiled the step" in log for log in logs)
    assert compiled == 2
    assert found >= sum(trials for _, trials, _ in SWEEPS.values()) - compiled
