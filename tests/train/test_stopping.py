"""What stops a run without ending it, and what it keeps out: signals, time limits, a second run, numbers gone bad."""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_batch

from rdro_jax import cli
from rdro_jax.checkpoint import list_steps, load_items, manifest_path
from rdro_jax.config import load_config
from rdro_jax.errors import DivergedError, RestartWanted
from rdro_jax.losses import BCO, RDRO
from rdro_jax.models import load_model
from rdro_jax.optim import make_schedule
from rdro_jax.run_files import read_metrics
from rdro_jax.train import between, feed, train
from rdro_jax.train.run import finished_metrics, locked, make_folder, open_run
from rdro_jax.train.state import init_state
from rdro_jax.train.step import make_train_step
from rdro_jax.train.watchdog import Watchdog

ONE_DEVICE = ("mesh.data=1", "mesh.fsdp=1", "data.eval=null", "logging_steps=3", "checkpoint.save_steps=4")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


def lines_without_times(folder):
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_same_command_goes_on(number, config_file, monkeypatch, capsys):
    """Stopped between two lines of metrics: what was fetched for the next one is part of the checkpoint."""
    config = load_config(config_file, ONE_DEVICE)
    whole = train(config.model_copy(update={"output_dir": config.output_dir + "_whole"}))
    due, asked = between.due, []

    def signalled(step, interval):
        if step == 5 and not asked:
            asked.append(step)
            os.kill(os.getpid(), number)
        return due(step, interval)

    with monkeypatch.context() as patch:
        patch.setattr(between, "due", signalled)
        command = ["train", str(config_file), *ONE_DEVICE]
        assert cli.main(command) == 42
    assert f"{number.name}: state saved after step 5; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert cli.main(command) == 0
    run = whole.run_dir.with_name("run")
    assert lines_without_times(run) == lines_without_times(whole.run_dir)
    left, right = (jax.tree.map(np.asarray, load_model(folder)[0]) for folder in (run, whole.run_dir))
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_second_interrupt_ends_the_run_at_once(config_file, monkeypatch, capsys):
    due = between.due

    def interrupted(step, interval):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return due(step, interval)

    command = ["train", str(config_file), *ONE_DEVICE]
    with monkeypatch.context() as patch:
        patch.setattr(between, "due", interrupted)
        assert cli.main(command) == 130
    assert 4 in list_steps(config_file.parent / "run")  # the save after step 8 may be under way
    assert cli.main(command) == 0
    assert "resuming after step" in capsys.readouterr().err


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_waits_for_no_evaluation_and_the_run_that_goes_on_makes_it(last, config_file, monkeypatch, capsys):
    """Told while held-out rows are scored: after the second step, and after the last, when nothing else is left."""
    best = ("checkpoint.metric_for_best_model=eval_loss", "checkpoint.save_total_limit=9")
    words = [*ONE_DEVICE[:2], "eval_steps=2", "checkpoint.save_steps=4", *best]
    alive, calls = Watchdog.alive, []

    def told(self, at=None):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        alive(self)

    monkeypatch.setattr(Watchdog, "alive", told)
    whole = train(load_config(config_file, [*words, f"output_dir={config_file.parent}/whole"])).run_dir
    evaluations = [line for line in read_metrics(whole / "metrics.jsonl") if "eval_loss" in line]
    first = 1 + (len(calls) * (len(evaluations) - 1) // len(evaluations) if last else 0)
    calls.clear()
    monkeypatch.setattr(Watchdog, "alive", lambda self: told(self, first))
    assert cli.main(["train", str(config_file), *words]) == 42
    stopped = evaluations[-1 if last else 0]["step"]
    assert f"SIGTERM: state saved after step {stopped}" in capsys.readouterr().err
    run = whole.with_name("run")
    assert not any("eval_loss" in line for line in read_metrics(run / "metrics.jsonl") if line["step"] == stopped)
    largest = max((run / f"checkpoint-{stopped}").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    written = largest.stat().st_mtime_ns
    calls.clear()  # told once more, in the evaluation that is made up: the checkpoint stays as it is
    monkeypatch.setattr(Watchdog, "alive", lambda self: told(self, 1))
    assert cli.main(["train", str(config_file), *words]) == 42
    assert cli.main(["train", str(config_file), *words]) == 0
    assert largest.stat().st_mtime_ns == written
    assert lines_without_times(run) == lines_without_times(whole)
    assert (run / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    compared = lambda folder: json.loads(manifest_path(folder, evaluations[-1]["step"]).read_text())["metrics"]  # noqa: E731
    assert compared(run) == compared(whole) != {}


def test_time_that_is_up_stops_after_the_step_under_way(config_file):
    with pytest.raises(RestartWanted, match=r"max_runtime: state saved after step 1"):
        train(load_config(config_file, (*ONE_DEVICE, "max_runtime=1e-3")))
    result = train(load_config(config_file, ONE_DEVICE))  # without a limit: a key that may change
    assert (result.run_dir / "result.json").exists()


def test_moments_in_host_memory_are_saved_and_go_on(config_file):
    few = (*ONE_DEVICE, "max_steps=3")
    whole = train(load_config(config_file, (*few, f"output_dir={config_file.parent}/whole")))
    moments_away = (*few, "optimizer.offload=true")
    with pytest.raises(RestartWanted, match="state saved after step 1"):
        train(load_config(config_file, (*moments_away, "max_runtime=1e-3")))
    resumed = train(load_config(config_file, moments_away))
    left, right = (load_model(result.run_dir)[0] for result in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_run_without_a_checkpoint_takes_nothing_over_from_the_last_one(config_file):
    """The checkpoints were removed, as a message may advise: what lies beside them speaks of another run."""
    config = load_config(config_file, ONE_DEVICE)
    folder = make_folder(config)
    for name in ("result.json", "alpha.json"):
        (folder / name).write_text("{}")
    run = open_run(config)
    assert (run.resume_step, finished_metrics(run)) == (0, None)
    assert not (folder / "alpha.json").exists()
    assert (folder / "environment.json").exists()


def test_the_second_run_in_a_folder_names_the_first(config_file):
    with locked(load_config(config_file, ONE_DEVICE)):
        words = [sys.executable, "-m", "rdro_jax.cli", "train", str(config_file), *ONE_DEVICE]
        one = os.environ | {"XLA_FLAGS": ""}
        second = subprocess.run(words, env=one, capture_output=True, text=True, check=False, timeout=280)
    assert second.returncode == 2, second.stderr
    assert f"is held by process {os.getpid()} on {platform.node()};" in second.stderr
    with locked(load_config(config_file, ONE_DEVICE)):  # the folder is free again
        pass


def forward(params, batch):
    return batch.reference_logps + params["s"] * jnp.where(batch.desirable, 1.0, -1.0)


@pytest.mark.parametrize("loss", [RDRO(alpha=0.4), BCO()], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(loss, bad):
    batch = make_batch([(2, 3), (1, 4), (2, 2), (3, 5)], rows=2, slots=2, seq=16, labels=[True, False, True, False])
    optimizer = optax.adam(0.1)
    step = jax.jit(make_train_step(forward, loss, optimizer, num_microbatches=2))
    state, told = step(init_state({"s": jnp.float32(0.3)}, loss, optimizer), batch)
    assert told["skipped"] == 0
    poisoned = batch._replace(reference_logps=batch.reference_logps.at[1, 0].set(bad))
    after, told = step(state, poisoned)
    assert told["skipped"] == 1
    assert after.step == state.step + 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=0), state._replace(step=0))


def test_a_spike_is_skipped_and_its_parameter_named():
    batch = make_batch([(2, 3), (1, 4)], rows=1, slots=2, seq=16, labels=[True, False])
    logps = lambda params, batch: forward({"s": params["calm"] + 50 * params["wild"]}, batch)  # noqa: E731
    loss, optimizer = RDRO(alpha=0.4), optax.sgd(0.1)
    state = init_state({"calm": jnp.float32(0.0), "wild": jnp.float32(0.0)}, loss, optimizer)
    _, told = jax.jit(make_train_step(logps, loss, optimizer))(state, batch)
    norm = float(told["grad_norm"])
    for limit, skipped in ((1.01 * norm, 0), (0.99 * norm, 1)):
        after, told = jax.jit(make_train_step(logps, loss, optimizer, skip_grad_norm=limit))(state, batch)
        assert (told["skipped"], told["first_bad_leaf"], after.step) == (skipped, 1, 1)
        assert bool(after.params["wild"] == 0) == bool(skipped)


@pytest.fixture
def poison(monkeypatch):
    """Spoils the rows of some steps of the next run as they are loaded, as a broken device or file would."""
    put = feed.global_arrays

    def spoil(*bad):
        numbers = itertools.count(1)

        def place(batch, sharding):
            if next(numbers) in bad:
                batch = batch._replace(reference_logps=np.full_like(batch.reference_logps, np.nan))
            return put(batch, sharding)

        monkeypatch.setattr(feed, "global_arrays", place)

    return spoil


def test_bad_steps_are_skipped_told_and_after_three_in_a_row_the_run_ends(config_file, poison, capsys):
    poison(3, 5)
    config = load_config(config_file, (*ONE_DEVICE, "logging_steps=1"))
    result = train(config)
    lines = list(read_metrics(result.run_dir / "metrics.jsonl"))
    assert [line["step"] for line in lines if line["skipped_steps"]] == [3, 5]
    assert "loss" not in lines[2]
    rates = make_schedule(config.optimizer, len(lines))(np.arange(5))  # a skipped step uses none
    assert [line["learning_rate"] for line in lines[:7] if not line["skipped_steps"]] == pytest.approx(
        rates.tolist(), rel=1e-6
    )
    assert np.isfinite(lines[-1]["loss"])
    assert capsys.readouterr().err.count("the step is skipped") == 2
    assert json.loads((result.run_dir / "result.json").read_text())["skipped_steps"] == 0
    poison(6, 7, 8)
    other = load_config(config_file, (*ONE_DEVICE, f"output_dir={result.run_dir}_again"))
    message = r"step 8: loss nan.*rows \d+, .*3 steps in a row; .*the last good state is checkpoint-4"
    with pytest.raises(DivergedError, match=message):
        train(other)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_goes_back_ends_as_one_that_skipped_the_steps_since(stopped, config_file, poison, capsys):
    def lines_of(name, *overrides):
        settings = (*ONE_DEVICE, "logging_steps=1", f"output_dir={config_file.parent / name}", *overrides)
        run_dir = train(load_config(config_file, settings)).run_dir
        return run_dir, lines_without_times(run_dir)

    poison(6, 7, 8)
    if stopped:  # on its way to the bad rows, and starting anew without having gone back
        with pytest.raises(DivergedError):
            lines_of("back")
        poison(2, 3, 4)  # the same rows: the first four steps are done
    back, lines = lines_of("back", "max_rollbacks=1")
    assert "going back to checkpoint-4 without the rows of steps 5 to 8" in capsys.readouterr().err
    assert [line["rollback_to"] for line in lines if line["step"] == 8 and "rollback_to" in line] == [4]
    poison(5, 6, 7, 8)
    skipped, wanted = lines_of("skipped", "max_skipped_steps=5")
    assert (back / "model.safetensors").read_bytes() == (skipped / "model.safetensors").read_bytes()
    assert [line for line in lines if line["step"] > 8] == [line for line in wanted if line["step"] > 8]
    assert json.loads((back / "result.json").read_text())["rollback_to"] == 4
    last, number = list_steps(back)[-1], jax.ShapeDtypeStruct((), jnp.int32, sharding=jnp.int32(0).sharding)
    assert load_items(back, last, {"step": number})["step"] == last


def test_a_run_goes_back_as_often_as_it_may(config_file, poison):
    poison(6, 7, 8, 9, 10, 11)
    with pytest.raises(DivergedError, match=r"step 11: .*the last good state is checkpoint-"):
        train(load_config(config_file, (*ONE_DEVICE, "max_rollbacks=1")))


def test_a_run_goes_back_to_what_is_sound(config_file, poison, capsys):
    """It stands before a damaged checkpoint, which it passed over when it started anew."""
    run_dir = config_file.parent / "run"
    poison(10, 11, 12)
    with pytest.raises(DivergedError, match="the last good state is checkpoint-8"):
        train(load_config(config_file, ONE_DEVICE))
    largest = max((run_dir / "checkpoint-8").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    largest.write_bytes(bytes(largest.stat().st_size))
    poison(2, 3, 4)  # steps 6 to 8
    train(load_config(config_file, (*ONE_DEVICE, "max_rollbacks=1")))
    assert "going back to checkpoint-4 without the rows of steps 5 to 8" in capsys.readouterr().err
