"""The life of a sweep with stub trials: in this process, no jax, no kills. What a user reads and what is on disk."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import sem, t

from rdro_jax import cli
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.sweep import executors, status
from rdro_jax.sweep.executors import devices_of_slot
from rdro_jax.sweep.journal import _repair
from rdro_jax.sweep.points import known_points
from rdro_jax.sweep.run import run
from rdro_jax.sweep.runs import Run
from rdro_jax.sweep.space import Domain
from rdro_jax.sweep.spec import Local, load_sweep
from rdro_jax.train.run import hold_folder

RATE = {"optimizer": {"learning_rate": {"log": [1.0e-7, 1.0e-5]}}}


@pytest.fixture(autouse=True)
def _stub(monkeypatch):
    stub = Path(__file__).with_name("stub_trial.py")
    monkeypatch.setattr(executors, "COMMAND", (sys.executable, "-S", str(stub)))
    monkeypatch.setenv("STUB_SECONDS", "0.001")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_seeds_give_a_mean_with_an_interval_and_the_best_config_loads(sweep_file):
    space = {"optimizer": {"learning_rate": {"choice": [2.0e-6, 4.0e-6, 7.0e-6]}}}
    folder = run(sweep_file(sampler={"name": "grid"}, space=space, seeds=[1, 2, 6], parallel=3))
    rows = rows_of(folder)
    # The stub's metric is |rate in millionths - 3| + seed / 100.
    assert [row["value"] for row in rows] == pytest.approx([1.03, 1.03, 4.03])
    values = [1.01, 1.02, 1.06]
    low, high = t.interval(0.95, 2, loc=1.03, scale=sem(values))
    assert rows[0]["values"] == pytest.approx(values)
    assert rows[0]["ci95"] == pytest.approx((high - low) / 2)
    best = load_config(folder / "best.yaml")
    assert best.optimizer.learning_rate == 2.0e-6
    assert best.output_dir == str(folder / "best")
    assert (folder / "results.csv").read_text().startswith("trial,state,optimizer.learning_rate,value,ci95,seconds,why")


def test_a_failed_trial_is_told_never_restarted_and_tried_again_when_asked(sweep_file, capsys):
    """The stub fails with code 4 at `max_steps` 904, as a run that finds its model damaged would."""
    space = {"max_steps": {"choice": [10, 904, 20]}}
    file = sweep_file(sampler={"name": "grid"}, space=space, set={"optimizer": {"learning_rate": 1.0e-6}})
    folder = run(file)
    assert [row["state"] for row in rows_of(folder)] == ["complete", "fail", "complete"]
    assert rows_of(folder)[1]["why"] == "max_steps: fault 904"
    steps = folder / "trials" / "0001" / "steps.log"
    assert steps.read_text() == "1\n2\n"
    run(file)
    assert steps.read_text() == "1\n2\n"
    (folder / "trials" / "mended").touch()
    assert cli.main(["sweep", str(file), "--retry-failed"]) == 0
    assert "1 failed trials stand in line again" in capsys.readouterr().err
    assert [(row["trial"], row["state"]) for row in rows_of(folder)] == [(n, "complete") for n in range(3)]
    assert steps.read_text().split() == [*map(str, range(1, 13))]  # from its own checkpoint


def test_seeds_that_fail_at_once_are_one_failed_trial(sweep_file, monkeypatch):
    monkeypatch.setattr("rdro_jax.sweep.run.POLL_SECONDS", 1.0)
    space = {"optimizer": {"learning_rate": {"choice": [1.0e-6, 904.0]}}}
    rows = rows_of(run(sweep_file(sampler={"name": "grid"}, space=space, seeds=[0, 1, 2], parallel=6)))
    assert [row["state"] for row in rows] == ["complete", "fail"]


@pytest.mark.parametrize("seeds", [(), (1, 2)])
def test_each_program_is_compiled_by_the_run_that_needs_it_first(sweep_file, monkeypatch, seeds):
    """Two losses, each at three learning rates, and room for all runs at once."""
    monkeypatch.setenv("STUB_SECONDS", "0.05")
    rates = {"optimizer": {"learning_rate": {"choice": [1.0e-6, 2.0e-6, 3.0e-6]}}}
    space = rates | {"loss": {"rdro": {}, "ddro": {}}}
    folder = run(sweep_file(sampler={"name": "grid"}, space=space, seeds=list(seeds), parallel=12))
    assert [row["state"] for row in rows_of(folder)] == ["complete"] * 6
    compiled = {file.name: file.read_text() for file in (folder / "compilation_cache").iterdir()}
    assert compiled == {"rdro": "compiled\n", "ddro": "compiled\n"}


def test_a_trial_that_is_no_good_is_pruned(sweep_file, monkeypatch):
    """Rates rise, and the stub's loss with them: the median of what went before is always better."""
    rates = {"optimizer": {"learning_rate": {"choice": [1.0e-6, 2.0e-6, 3.0e-6, 9.0e-6]}}}
    pruner = {"name": "median", "metric": "loss", "startup": 2, "warmup_steps": 2}
    monkeypatch.setenv("STUB_SECONDS", "0.03")
    folder = run(sweep_file(sampler={"name": "grid"}, space=rates, pruner=pruner, seeds=[0, 1]))
    rows = rows_of(folder)
    assert [row["state"] for row in rows] == ["complete", "complete", "pruned", "pruned"]
    assert not Path(rows[3]["runs"][1]).exists()  # its second seed was not paid for


def test_halving_waits_for_its_first_trials(sweep_file, monkeypatch):
    """Rates rise, and the stub's loss with them: every later trial is among the worse half at each rung."""
    rates = {"optimizer": {"learning_rate": {"choice": [n * 1.0e-6 for n in range(1, 10)]}}}
    pruner = {"name": "halving", "metric": "loss", "startup": 6}
    monkeypatch.setenv("STUB_SECONDS", "0.02")
    rows = rows_of(run(sweep_file(sampler={"name": "grid"}, space=rates, pruner=pruner)))
    assert [row["state"] for row in rows] == ["complete"] * 6 + ["pruned"] * 3


def test_signals_stop_trials_with_their_state_saved(sweep_file, monkeypatch, capsys):
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    file = sweep_file()
    folder = load_sweep(file).folder

    def interrupt():
        while not (folder / "trials" / "0000" / "steps.log").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert cli.main(["sweep", str(file)]) == 42
    assert "SIGTERM: no run is left here; the same command goes on" in capsys.readouterr().err
    assert [row["state"] for row in rows_of(folder)] == ["running"]
    monkeypatch.setenv("STUB_SECONDS", "0.001")
    assert cli.main(["sweep", str(file)]) == 0
    for row in rows_of(folder):
        assert (Path(row["runs"][0]) / "steps.log").read_text().split() == [*map(str, range(1, 13))]


def test_status_shows_every_trial(sweep_file, capsys):
    file = sweep_file()
    assert cli.main(["sweep", str(file), "--status"]) == 2
    assert "no sweep was started here" in capsys.readouterr().err
    run(file)
    capsys.readouterr()
    assert cli.main(["sweep", str(file), "--status"]) == 0
    assert "2 of 2 trials ended" in " ".join(capsys.readouterr().out.split())


def test_status_on_a_terminal_goes_on_until_the_last_trial_ended(sweep_file, monkeypatch):
    """The table that stands there last is the one that was looked up last."""
    file = sweep_file()
    folder = run(file)
    ended = (folder / "results.jsonl").read_text()
    rows = [json.loads(line) for line in ended.splitlines()]
    rows[1] |= {"state": "running", "value": None}
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    waited = []

    def wait(seconds):
        waited.append(seconds)
        (folder / "results.jsonl").write_text(ended if len(waited) == 2 else (folder / "results.jsonl").read_text())

    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    monkeypatch.setattr(status, "Console", lambda: terminal)
    monkeypatch.setattr(status.time, "sleep", wait)
    status.show_status(file)
    assert waited == [status.REFRESH_SECONDS] * 2
    shown = terminal.file.getvalue()
    assert 0 < shown.find("1 of 2 trials ended") < shown.find("2 of 2 trials ended")


def test_status_waits_for_no_jax_and_no_optuna(sweep_file):
    """Whoever looks every minute must not wait seconds for what a look does not need."""
    file = sweep_file()
    folder = load_sweep(file).folder
    run_folder = folder / "trials" / "0000"
    run_folder.mkdir(parents=True)
    (run_folder / "metrics.jsonl").write_text('{"step": 7}\n')
    row = {"trial": 0, "state": "running", "point": {"seed": 3}, "value": None, "ci95": None, "seconds": None}
    rows = [row | {"runs": [str(run_folder)]}, row | {"trial": 1, "state": "fail", "why": "got [/x]; wanted [low]"}]
    (folder / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "summary.json").write_text('{"metric": "eval_loss", "direction": "minimize", "planned": 2, "best": null}')
    look = f"import sys; from rdro_jax import cli; code = cli.main(['sweep', {str(file)!r}, '--status'])"
    heavy = "print({'jax', 'numpy', 'optuna', 'scipy', 'omegaconf', 'pydantic'} & {*sys.modules}); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", f"{look}; {heavy}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "at step 7" in done.stdout
    assert "got [/x]; wanted [low]" in " ".join(done.stdout.split())  # nothing of it is read as a style
    assert done.stdout.endswith("set()\n")


def test_a_second_coordinator_names_the_first(sweep_file, capsys):
    file = sweep_file()
    folder = load_sweep(file).folder
    folder.mkdir()
    with hold_folder(folder):
        assert cli.main(["sweep", str(file)]) == 2
    assert f"is held by process {os.getpid()} on" in capsys.readouterr().err


def test_a_changed_file_is_refused_with_what_changed(sweep_file):
    file = sweep_file()
    run(file)
    text = file.read_text()
    file.write_text(text.replace("trials: 2", "trials: 3").replace("parallel: 1", "parallel: 2"))
    assert len(rows_of(run(file))) == 3
    file.write_text(text.replace("- 1.0e-07", "- 1.0e-06"))
    message = r"space.optimizer.learning_rate.log was \[1e-07, 1e-05\], is \[1e-06, 1e-05\]"
    with pytest.raises(ConfigError, match=message):
        run(file)


def test_a_metric_nobody_has_ends_the_sweep_at_the_first_trial(sweep_file):
    file = sweep_file(objective={"metric": "eval_lss"}, trials=5)
    with pytest.raises(ConfigError, match=r"'eval_lss' is no metric of .*0000; it has eval_loss, loss"):
        run(file)
    assert len(rows_of(load_sweep(file).folder)) == 1


def test_what_is_set_of_a_loss_holds_for_every_loss(sweep_file):
    """The base's loss is rdro; another name would drop what was said of its section before."""
    loss = {"alpha": {"choice": [0.3]}, "name": {"choice": ["rdro", "ddro"]}}
    for space in ({"loss": {"rdro": {}, "ddro": {}}}, {"loss": loss}):
        sweep = load_sweep(sweep_file(sampler={"name": "grid"}, set={"loss": {"sft_weight": 0.2}}, space=space))
        configs = [sweep.config(point) for point in sweep.space.grid()]
        assert {config.loss.name: config.loss.sft_weight for config in configs} == {"rdro": 0.2, "ddro": 0.2}
        assert "name" not in space["loss"] or [config.loss.alpha for config in configs] == [0.3, 0.3]


def test_an_objective_that_is_not_finite_is_a_failed_trial(sweep_file, monkeypatch):
    monkeypatch.setattr(Run, "result", lambda run: {"eval_loss": float("inf")} if run.folder.exists() else None)
    folder = run(sweep_file(trials=1))
    assert [(row["state"], row["why"]) for row in rows_of(folder)] == [("fail", "eval_loss is inf")]
    assert (folder / "report.html").exists()


def test_a_torn_journal_is_mended_without_writing_it_anew(tmp_path, monkeypatch):
    """A kill, or a full disk, in the middle of that would lose all trials."""
    (tmp_path / "journal.log").write_text('{"a": 1}\n{"b"')
    monkeypatch.setattr(Path, "write_bytes", None)
    _repair(tmp_path / "journal.log")
    assert (tmp_path / "journal.log").read_text() == '{"a": 1}\n'


def test_points_of_a_wide_or_narrow_range():
    """All seeds there are, none of them written down; a beta that four digits would not tell from its neighbour."""
    assert Domain("range", (0, 2**32 - 1)).at(0.5) == 2**31
    assert [*Domain("range", (3, 10), 3).grid()] == [3, 6, 9]
    places = [n / 100 for n in range(100)]
    betas = [Domain("range", (0.999, 0.9999)).at(place) for place in places]
    assert betas == pytest.approx([0.999 + 0.0009 * place for place in places], abs=1e-6)
    assert len({*betas}) == 100
    assert Domain("range", (0.05, 0.5)).at(0.123456) == 0.1056


def test_dry_run_prints_the_command_of_every_run(sweep_file, capsys):
    file = sweep_file(sampler={"name": "tpe", "startup": 2}, trials=5, seeds=[7, 8])
    assert cli.main(["sweep", str(file), "--dry-run"]) == 0
    *lines, rest = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "seed=8" in lines[1]
    assert all(line.startswith("rdro train ") for line in lines)
    assert rest == "# 3 more, chosen in the light of these"
    assert not load_sweep(file).folder.exists()


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_points_follow_from_seed_and_number_alone(sweep_file, sampler):
    """The first three of a sweep of thirty are the sweep of three; another seed gives other points."""
    points = {
        (trials, seed): list(
            known_points(load_sweep(sweep_file(sampler={"name": sampler, "seed": seed}, trials=trials)))
        )
        for trials, seed in ((3, 0), (30, 0), (3, 1))
    }
    assert points[3, 0] == points[30, 0][:3]
    assert points[3, 0] != points[3, 1]
    assert len({point["optimizer.learning_rate"] for point in points[30, 0]}) == 30


def test_a_small_space_is_tried_once(sweep_file):
    """All of its points, the last ones too, which a hundred draws of nine hundred may well miss; and no more."""
    space = {"seed": {"range": [0, 899]}}
    file = sweep_file(trials=900, space=space)
    assert sorted(point["seed"] for point in known_points(load_sweep(file))) == [*range(900)]
    with pytest.raises(ConfigError, match="trials: got 901; the space has 900 points, and none is tried twice"):
        load_sweep(sweep_file(trials=901, space=space))


@pytest.mark.parametrize(
    ("config", "slot", "expected"),
    [
        (Local(accelerator="gpu"), 2, {"CUDA_VISIBLE_DEVICES": "2"}),
        (Local(accelerator="gpu", devices_per_trial=2), 1, {"CUDA_VISIBLE_DEVICES": "2,3"}),
        (Local(), 1, {}),
    ],
)
def test_each_slot_has_its_devices(config, slot, expected):
    assert devices_of_slot(config, slot) == expected


def test_slots_are_dealt_from_the_devices_the_user_names(monkeypatch, sweep_file):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6")
    assert devices_of_slot(Local(accelerator="gpu"), 2) == {"CUDA_VISIBLE_DEVICES": "GPU-6"}
    with pytest.raises(ConfigError, match="parallel: slot 3 needs 4 devices in all, CUDA_VISIBLE_DEVICES names 3"):
        run(sweep_file(executor={"name": "local", "accelerator": "gpu"}, parallel=4))


def test_a_run_that_outlived_its_coordinator_keeps_its_devices(sweep_file, monkeypatch):
    """The run of slot 0 and the coordinator are killed; the next one must not deal out the survivor's device."""
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    rates = {"optimizer": {"learning_rate": {"choice": [1.0e-6, 2.0e-6]}}}
    gpus = {"name": "local", "accelerator": "gpu"}
    file = sweep_file(sampler={"name": "grid"}, space=rates, executor=gpus, parallel=2)
    trials = load_sweep(file).folder / "trials"
    first = os.fork()
    if first == 0:
        run(file)
        os._exit(0)
    while not (trials / "0001" / "steps.log").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    slot, pid = executors.read_alive(trials / "0000" / executors.ALIVE_FILE)
    os.kill(pid, signal.SIGKILL)
    dealt = []
    monkeypatch.setattr(executors, "devices_of_slot", lambda _, slot: dealt.append(slot) or {})
    run(file)
    assert executors.read_alive(trials / "0001" / executors.ALIVE_FILE)[0] == 1
    assert (slot, dealt) == (0, [0])


def test_a_tpu_slot_is_told_its_chips():
    told = devices_of_slot(Local(accelerator="tpu"), 3)
    assert told["TPU_VISIBLE_CHIPS"] == "3"
    assert told["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1"


FAULTS = {
    "optimizer.learning_rte: unknown key; did you mean 'learning_rate'?": {
        "space": {"optimizer": {"learning_rte": {"log": [1.0e-7, 1.0e-5]}}}
    },
    "optimizer.learning_rate: got -1; wanted a number greater than 0": {
        "space": {"optimizer": {"learning_rate": {"choice": [1.0e-6, -1]}}}
    },
    "loss.alpha: unknown key; loss knows name, sft_weight": {
        "space": {"loss": {"rdro": {}, "dpo": {"alpha": {"choice": [0.3]}}}}
    },
    "space.loss.beta: stands beside 'dpo' but is no loss": {"space": {"loss": {"dpo": {}, "beta": {"choice": [0.1]}}}},
    "space.optimizer.learning_rate: a grid wants 'choice'": {"sampler": {"name": "grid"}},
    "space.optimizer.learning_rate.log: got [0, 1]; wanted numbers above 0": {
        "space": {"optimizer": {"learning_rate": {"log": [0, 1]}}}
    },
    "set.optimizer.learning_rate: a key of the space too": {"set": {"optimizer": {"learning_rate": 1.0e-6}}},
    "seeds: 'seed' is a key of the space too": {"space": {"seed": {"choice": [1, 2]}}, "seeds": [1]},
    "sampler.nam: unknown key; did you mean 'name'?": {"sampler": {"name": "tpe", "nam": 1}},
    "executor.devices_per_trial: got 3; TPU chips are dealt out by 1, 2, 4 or 8": {
        "executor": {"name": "local", "accelerator": "tpu", "devices_per_trial": 3}
    },
    "trials: got 0; wanted a number greater than 0": {"trials": 0},
    "objective.metric: 'eval_loss' needs held-out rows": {"set": {"data": {"eval": None}}},
    "checkpoint.mirror: its runs would share one copy": {"set": {"checkpoint": {"mirror": "memory://copies"}}},
    "set.output_dir: each run gets a folder of its own": {"set": {"output_dir": "x"}},
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults_are_told_before_trial_0_with_file_and_line(sweep_file, message):
    file = sweep_file(**FAULTS[message])
    with pytest.raises(ConfigError) as caught:
        load_sweep(file)
    text = str(caught.value)
    assert message in text
    assert re.match(rf"{file}:(\d+:)? ", text)
    assert "\n" not in text
