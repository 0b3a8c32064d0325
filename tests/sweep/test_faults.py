"""Coordinators and trials killed -9 at random moments: every trial finished once, none repeated, each from its own
checkpoint. Trials are stubs here; `make sweep-faults` does the same with real ones."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

RATES = [1.0e-6, 2.0e-6, 3.0e-6, 4.0e-6]
GRID = {"optimizer": {"learning_rate": {"choice": RATES}}, "loss": {"rdro": {"alpha": {"choice": [0.3, 0.4, 0.5]}}}}
BY_LOSS = {"optimizer": {"learning_rate": {"log": [1.0e-7, 1.0e-5]}}, "loss": {"rdro": {}, "dpo": {}}}
STEPS = {"optimizer": {"learning_rate": {"range": [1.0e-6, 3.0e-6], "step": 1.0e-7}}}


@pytest.fixture(scope="module")
def fates(tmp_path_factory, write_sweep_in):
    """Three sweeps run by one host, which imports once: the sweep file of each, what was killed, its results."""
    home, here = tmp_path_factory.mktemp("faults"), Path(__file__).parent
    files = {
        "grid": (write_sweep_in(home / "grid", sampler={"name": "grid"}, space=GRID, parallel=3), 10),
        "tpe": (write_sweep_in(home / "tpe", sampler={"name": "tpe", "startup": 5}, trials=20, space=BY_LOSS), 10),
        "random": (write_sweep_in(home / "random", trials=12, space=STEPS, parallel=2), 3),
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])}
    jobs = json.dumps([(str(file), kills) for file, kills in files.values()])
    command = [sys.executable, str(here / "host.py"), jobs]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    fates = {}
    for (name, (file, _)), deaths in zip(files.items(), json.loads(done.stdout), strict=True):
        assert deaths["code"] == 0, done.stderr
        rows = (file.parent / "sweep" / "results.jsonl").read_text().splitlines()
        fates[name] = file, deaths, [json.loads(row) for row in rows]
    return fates


def check_every_run_went_on_from_its_checkpoint(rows, deaths):
    """Steps follow each other, but for the one or two that a killed process had not saved yet."""
    repeated = 0
    for folder in itertools.chain.from_iterable(row["runs"] for row in rows):
        steps = [int(line) for line in (Path(folder) / "steps.log").read_text().split()]
        assert sorted({*steps}) == [*range(1, 13)]
        for before, after in itertools.pairwise(steps):
            # A checkpoint holds every second step: a run that goes on begins behind one, and leaves nothing out.
            assert after == before + 1 or (after <= before and after % 2 == 1 and before - after < 2)
        repeated += len(steps) - 12
    assert repeated <= deaths
    return repeated


def test_a_grid_killed_at_every_turn_runs_each_point_once(fates):
    _, deaths, rows = fates["grid"]
    assert deaths["trials"] > 0
    assert [row["state"] for row in rows] == ["complete"] * 12
    points = [(row["point"]["optimizer.learning_rate"], row["point"]["loss.alpha"]) for row in rows]
    assert sorted(points) == sorted(itertools.product(RATES, (0.3, 0.4, 0.5)))
    # The stub's metric, worked out by hand: |rate in millionths - 3|.
    assert all(row["value"] == abs(row["point"]["optimizer.learning_rate"] * 1e6 - 3) for row in rows)
    check_every_run_went_on_from_its_checkpoint(rows, deaths["trials"])


def test_tpe_killed_at_every_turn_finishes_exactly_its_trials(fates):
    _, deaths, rows = fates["tpe"]
    assert Counter(row["state"] for row in rows) == {"complete": 20}
    assert len({tuple(row["point"].items()) for row in rows}) == 20
    check_every_run_went_on_from_its_checkpoint(rows, deaths["trials"])


def test_a_random_sweep_that_was_resumed_is_the_one_that_was_not(fates):
    """Point n follows from the seed and n: no point comes twice, and a kill changes none."""
    from rdro_jax.sweep.points import known_points
    from rdro_jax.sweep.spec import load_sweep

    file, _, rows = fates["random"]
    points = [row["point"]["optimizer.learning_rate"] for row in rows]
    assert len({*points}) == 12
    assert points == [point["optimizer.learning_rate"] for point in known_points(load_sweep(file))]


@pytest.mark.parametrize("name", ["grid", "tpe"])
def test_the_reference_is_computed_once(fates, name):
    assert (fates[name][0].parent / "sweep" / "computed.log").read_text() == "reference\n"
