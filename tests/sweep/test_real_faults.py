"""`make sweep-faults`: what test_faults.py does with stubs, with `rdro train` on a tiny model; many minutes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.sweep_task import write_task
from rdro_jax.run_files import read_metrics

pytestmark = pytest.mark.skipif("REAL_TRIALS" not in os.environ, reason="make sweep-faults")
HERE, KILLS = Path(__file__).parent, 10
SPACES = {
    "grid": {
        "optimizer": {"learning_rate": {"choice": [1.0e-3, 2.0e-3, 3.0e-3]}},
        "loss": {"rdro": {"alpha": {"choice": [0.4, 0.5, 0.6]}}, "ddro": {}},
    },
    "tpe": {"optimizer": {"learning_rate": {"log": [1.0e-4, 1.0e-2]}}},
}


@pytest.fixture(scope="module", params=[("grid", 12), ("tpe", 20)], ids=["grid", "tpe"])
def fate(request, tmp_path_factory):
    """A sweep that was killed ten times and finished: how many trials it has, its folder, what was killed."""
    name, trials = request.param
    home = tmp_path_factory.mktemp(name)
    sweep = {"base": str(write_task(home / "task")), "output_dir": str(home / "sweep"), "parallel": 2}
    sweep |= {"space": SPACES[name], "sampler": {"name": name}} | ({"trials": trials} if name == "tpe" else {})
    (home / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    environment.pop("XLA_FLAGS")
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    command = [sys.executable, str(HERE / "host.py"), json.dumps([(str(home / "sweep.yaml"), KILLS)])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    [deaths] = json.loads(done.stdout)
    assert deaths["code"] == 0, done.stderr
    return trials, home / "sweep", deaths


def test_exactly_its_trials_each_once_each_from_its_own_checkpoint(fate):
    trials, folder, deaths = fate
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    print(deaths)
    assert [row["state"] for row in rows] == ["complete"] * trials
    assert len({json.dumps(row["point"]) for row in rows}) == trials
    logs = {folder: (Path(folder) / "log.txt").read_text() for row in rows for folder in row["runs"]}
    began = re.findall(r"compiled the step in|resuming after step \d+", "".join(logs.values()))
    resumed = [words for words in began if words.startswith("resuming")]
    assert deaths["coordinators"] == KILLS
    assert 0 < len(resumed) <= deaths["trials"]
    for run in logs:
        steps = [line["step"] for line in read_metrics(Path(run) / "metrics.jsonl") if "loss" in line]
        assert steps == [*range(1, len(steps) + 1)]


def test_data_reference_and_program_are_made_once(fate):
    """Alpha and learning rate differ, the loss once in the grid: one program for each loss."""
    trials, folder, _ = fate
    assert len([*(folder / "reference_store").glob("*/*.safetensors")]) == 2  # of the training and the held-out rows
    logs = "".join(file.read_text() for file in folder.glob("trials/*/log.txt"))
    assert len(re.findall("rows prepared in", logs)) == 2
    assert len([*(folder / "compilation_cache").glob("jit_train_step-*-cache")]) == (2 if trials == 12 else 1)
