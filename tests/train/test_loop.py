"""A whole run on a tiny model: it learns, leaves a Hugging Face folder, resumes bit for bit, refuses what it must."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from rdro_jax import cli
from rdro_jax.checkpoint import list_steps
from rdro_jax.config import load_config
from rdro_jax.data import load_examples, load_tokenizer
from rdro_jax.errors import ConfigError, DivergedError, WeightError
from rdro_jax.evaluate import evaluate
from rdro_jax.export import export
from rdro_jax.models import load_model
from rdro_jax.run_files import read_metrics
from rdro_jax.train import trackers, train
from rdro_jax.train.metrics import MetricsWriter
from rdro_jax.train.trackers import OPENERS, Tracker

ONE_DEVICE = ("mesh.data=1", "mesh.fsdp=1")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """The loop itself on one of the simulated devices: the mesh is the business of test_step."""
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: one)


def params_of(folder):
    return jax.tree.map(np.asarray, load_model(folder)[0])


def test_a_run_learns_and_leaves_a_model(config_file, tmp_path):
    home = tmp_path.parent / "tiny0"
    held_out = {"reference": home / "model", "data": home / "eval.jsonl"}
    stale = tmp_path / "run" / "exports" / "step_000003"
    stale.mkdir(parents=True)
    (stale / "README.md").write_text("of a run that was killed before its first checkpoint")
    result = train(load_config(config_file, [*ONE_DEVICE, "checkpoint.export_steps=3"]))
    assert "after 3 steps of rdro\n" in (stale / "README.md").read_text()
    lines = list(read_metrics(result.run_dir / "metrics.jsonl"))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    alpha = json.loads((result.run_dir / "data_report.json").read_text())["train"]["alpha"]
    # before the first step policy = reference: s = 0 for every row, and the loss has its closed form
    first = steps[0]
    assert first["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert first["rewards/rejected"] == pytest.approx(0, abs=1e-4)
    share = first["counts/chosen"] / (first["counts/chosen"] + first["counts/rejected"])
    assert first["loss"] == pytest.approx(np.log(2) * (1 + share / alpha), abs=1e-4)
    paused = [line for line in steps if "time/save_s" in line]
    assert paused
    for line in paused:  # the time of a step is what saves and evaluations leave of the window, here of one step
        pause, left = line["time/save_s"] + line.get("time/eval_s", 0), line["throughput/goodput"]
        assert line["time/step_s"] == pytest.approx(pause * left / (1 - left), rel=1e-3)
    assert result.metrics["eval_rewards/auc"] > 0.9
    assert result.metrics["eval_loss"] < 2 * np.log(2)
    assert result.metrics["rewards/margins"] > 0.5
    trained, start = params_of(result.run_dir), params_of(home / "model")
    assert not np.array_equal(trained["norm"]["scale"], start["norm"]["scale"])
    assert load_tokenizer(result.run_dir).chat_template
    again = train(load_config(config_file, ONE_DEVICE))
    assert again.metrics == result.metrics
    (result.run_dir / "result.json").unlink()  # as one leaves it that is killed behind its last save
    assert train(load_config(config_file, ONE_DEVICE)).metrics == result.metrics
    # On the way it left a policy every third step, each whole and with its card; the last is the end's own.
    saved = list_steps(result.run_dir)[-2]
    exports = sorted(path.name for path in (result.run_dir / "exports").iterdir())
    assert exports == [f"step_{step:06d}" for step in range(3, len(steps), 3)]
    newest = result.run_dir / "exports" / f"step_{saved:06d}"
    export(result.run_dir, tmp_path / "exported", step=saved)
    for file in (tmp_path / "exported").iterdir():
        assert file.name == "README.md" or file.read_bytes() == (newest / file.name).read_bytes()
    assert f"after {saved} steps of rdro\n" in (newest / "README.md").read_text()
    assert f"after {len(steps)} steps of rdro\n" in (result.run_dir / "README.md").read_text()
    same = evaluate(result.run_dir, **held_out)
    logged = {name[5:]: value for name, value in result.metrics.items() if name.startswith("eval_")}
    assert {name: same[name] for name in logged} == pytest.approx(logged, abs=1e-4)
    low, high = same["intervals"]["loss"]
    assert low < same["loss"] < high


HOW = {
    "kto": ["loss.name=kto"],
    "bco in bfloat16": ["loss.name=bco", "model.compute_dtype=bfloat16"],
    "pairs": ["loss.name=dpo", "data.pair_by_prompt=true", "num_train_epochs=6"],
    "least squares": ["loss={name: rdro, generator: least_squares, alpha: prompt}", "data.truncation=drop"],
}


@pytest.mark.parametrize("how", HOW)
def test_the_command_tells_what_the_run_logged(how, config_file):
    """Whatever the loss and the precision, of the finished run and of its checkpoints, exported or not."""
    config = load_config(config_file, [*ONE_DEVICE, "max_steps=5", "eval_steps=3", "report_to=[]", *HOW[how]])
    run = train(config).run_dir
    logged = {line["step"]: line for line in read_metrics(run / "metrics.jsonl") if "eval_loss" in line}
    found = {5: evaluate(run), 3: evaluate(run / "checkpoint-3")}
    (run / "config.json").unlink()  # as a run that is not finished
    found[6] = evaluate(run)
    for step, told in found.items():
        wanted = {name[5:]: value for name, value in logged[min(step, 5)].items() if name.startswith("eval_")}
        assert {name: told[name] for name in wanted} == pytest.approx(wanted, abs=1e-4, nan_ok=True)
    assert logged[3]["eval_loss"] != logged[5]["eval_loss"]


def test_every_example_once_per_epoch(config_file):
    result = train(load_config(config_file, ONE_DEVICE))
    lines = [line for line in read_metrics(result.run_dir / "metrics.jsonl") if "loss" in line]
    assert sum(line["counts/chosen"] + line["counts/rejected"] for line in lines) == 3 * 60
    assert lines[-1]["epoch"] == 3


def test_trackers_that_fail_change_nothing(config_file, monkeypatch, capsys):
    """One raises when it is opened, one at every call: the same parameters as without any."""

    def fail(*_):
        raise OSError("no network")

    monkeypatch.setitem(OPENERS, "wandb", fail)
    monkeypatch.setitem(OPENERS, "tensorboard", lambda _: Tracker(fail, fail))
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    short = (*ONE_DEVICE, "max_steps=2", "data.eval=null")
    folder = config_file.parent
    ways = {"alone": ["report_to=[]"], "watched": ["report_to=[wandb,tensorboard]", "profile={start: 2, steps: 1}"]}
    alone, watched = (
        train(load_config(config_file, (*short, f"output_dir={folder / name}", *way))).run_dir
        for name, way in ways.items()
    )
    jax.tree.map(np.testing.assert_array_equal, params_of(alone), params_of(watched))
    losses = [[line.get("loss") for line in read_metrics(run / "metrics.jsonl")] for run in (alone, watched)]
    assert losses[0] == losses[1]
    assert list((watched / "profile").rglob("*.xplane.pb"))
    assert not (alone / "profile").exists()
    shown = capsys.readouterr().err
    assert shown.count("wandb: no network; the run goes on") == shown.count("tensorboard: no network; the run") == 1


def test_sft_fits_the_completions(config_file):
    result = train(load_config(config_file, (*ONE_DEVICE, "loss.name=sft", "num_train_epochs=6")))
    lines = [line for line in read_metrics(result.run_dir / "metrics.jsonl") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(np.log(64), abs=0.1)
    assert result.metrics["eval_loss"] < lines[0]["loss"] - 0.5
    assert not (config_file.parent / "store").exists()


def test_resume_with_another_config_is_refused(config_file, monkeypatch):
    train(load_config(config_file, (*ONE_DEVICE, "max_steps=3")))
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate was 0\.01, is 0\.02"):
        train(load_config(config_file, (*ONE_DEVICE, "max_steps=3", "optimizer.learning_rate=0.02")))


def test_nothing_is_compiled_once_the_steps_are_under_way(config_file, monkeypatch):
    """Neither traced: shapes and placements are those of the first step. The host waits for no batch by its metrics."""
    compiled, seen = [], []
    listen = lambda event, _, **__: compiled.append(event) if event.startswith("/jax/core/compile") else None  # noqa: E731
    write = MetricsWriter.write
    monkeypatch.setattr(MetricsWriter, "write", lambda self, line: (seen.append(len(compiled)), write(self, line))[1])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = train(load_config(config_file, (*ONE_DEVICE, "data.eval=null")))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(seen) > 6
    assert seen[0] > 0, "the listener hears of compiles"
    assert set(seen[2:]) == {seen[2]}
    assert 0 <= result.metrics["time/data_wait"] < 1


@pytest.fixture
def empty_cache(tmp_path):
    """No compiled program is known, whatever earlier tests have left."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_runs_tell_who_compiled_their_step(config_file, empty_cache, tmp_path, capsys):
    """Numbers differ, then the program does."""
    told = {}
    for name, override in (("first", "seed=1"), ("again", "optimizer.learning_rate=0.5"), ("other", "loss.name=ddro")):
        train(load_config(config_file, (*ONE_DEVICE, "max_steps=1", f"output_dir={tmp_path / name}", override)))
        told[name] = re.findall(r"(compiled the step|found the compiled step in the cache) in", capsys.readouterr().err)
    found = ["found the compiled step in the cache"]
    assert told == {"first": ["compiled the step"], "again": found, "other": ["compiled the step"]}


def test_reference_log_probs_are_computed_once(config_file, monkeypatch, tmp_path, capsys):
    """By `rdro prepare --reference`, for all runs on the store, whatever their loss, seed and folder."""
    assert cli.main(["prepare", str(config_file), *ONE_DEVICE, "--reference"]) == 0
    told = re.findall(r"computed (\d+) reference log-probs; (\d+) are left", capsys.readouterr().err)
    assert told == [("60", "0"), ("30", "0")]
    monkeypatch.setattr(
        sys.modules["rdro_jax.train.dataset"], "score_batches", lambda *_, **__: pytest.fail("scored again")
    )
    overrides = (*ONE_DEVICE, "max_steps=2", f"output_dir={tmp_path}/other", "seed=7", "loss.name=ddro")
    train(load_config(config_file, overrides))
    assert re.findall(r"has all of (\d+) reference log-probs", capsys.readouterr().err) == ["60", "30"]


def test_a_stale_store_is_noticed_before_the_first_step(config_file, tmp_path):
    from rdro_jax.train.reference import load_logps, save_logps

    config = load_config(config_file, (*ONE_DEVICE, "max_steps=1"))
    train(config)
    (store,) = (tmp_path / "store").iterdir()
    examples = load_examples(config.data.train, load_tokenizer(config.model.path), config.data)
    logps = load_logps(store.parent, store.name, examples)
    stale = logps + np.where(np.arange(60) == 7, 0.5, 0).astype(np.float32)
    for part in store.iterdir():
        part.unlink()
    save_logps(store.parent, store.name, examples.hashes, stale)
    fresh = config.model_copy(update={"output_dir": f"{config.output_dir}_fresh", "global_batch_size": 20})
    with pytest.raises(WeightError, match=r"store: 1 of 60 log-probs differ by up to 0\.5"):
        train(fresh)


def test_numbers_that_are_not_finite_end_the_run(config_file):
    overrides = (*ONE_DEVICE, "optimizer.learning_rate=1e30", "optimizer.warmup_ratio=0", "optimizer.max_grad_norm=0")
    with pytest.raises(DivergedError, match=r"step 4: loss nan.*3 steps in a row"):
        train(load_config(config_file, overrides))
