"""What is read of a run folder, and how a run is doing."""

import json
import math
import os
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

from rdro_jax.errors import CheckpointError, ConfigError
from rdro_jax.evaluate.outputs import write_rows
from rdro_jax.report import load_runs, read_status
from rdro_jax.report.charts import MOST_POINTS, thin
from rdro_jax.report.runs import Series, gather, short_names
from rdro_jax.train.console import progress


def test_metrics_become_series_over_their_own_steps():
    lines = [{"step": 1, "loss": 2.0, "null": None}, {"step": 1, "eval_loss": 3}, {"step": 2, "loss": None, "x": "no"}]
    others = [
        {"loss": 9.0},
        {"step": True, "loss": 9.0},
        {"step": 3, "eval_loss": "?"},
        {"step": 4, "eval_loss": False},
    ]
    series = gather([*lines, *others])
    assert {*series} == {"loss", "eval_loss"}
    np.testing.assert_array_equal(series["loss"].steps, [1, 2])
    np.testing.assert_array_equal(series["loss"].values, [2.0, math.nan])


def test_a_thinned_curve_keeps_order_ends_and_every_spike():
    values = np.sin(np.arange(10_000) / 700)
    values[[1234, 7777]] = 50, -50
    values[3000:3100] = np.nan
    thinned = thin(Series(np.arange(10_000.0), values))
    assert len(thinned.steps) <= MOST_POINTS
    assert (np.diff(thinned.steps) > 0).all()
    assert {1234.0, 7777.0} <= {*thinned.steps}
    assert np.isnan(thinned.values).any()
    np.testing.assert_array_equal(thinned.values, values[thinned.steps.astype(int)])


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    assert short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    with pytest.raises(ConfigError, match="named twice"):
        short_names([tmp_path, tmp_path / "." / ""])


def test_a_folder_without_a_run_and_a_damaged_file_are_named(tmp_path, run_folders):
    with pytest.raises(ConfigError, match=r"no metrics.jsonl in it; wanted the output_dir of a run"):
        load_runs([tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    (run,) = load_runs([tmp_path])
    assert (run.last_step(), run.latest("loss"), run.finished) == (1, 2.0, False)
    (tmp_path / "loss.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"loss.json: cannot be read"):
        load_runs([tmp_path])


def test_a_letter_that_unicode_breaks_lines_at_loses_no_sample(tmp_path):
    rows = [
        {"prompt": f"{number}", "completion": f"a{letter}b"} for number, letter in enumerate("\u2028\x85\u2029\r\x0c")
    ]
    write_rows(tmp_path / "samples.jsonl", rows)
    (tmp_path / "metrics.jsonl").write_text("")
    (run,) = load_runs([tmp_path])
    assert [*run.samples] == rows


def test_status_tells_running_from_stopped_and_finished(run_folders, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text((run_folders[0] / "metrics.jsonl").read_text())
    status = read_status(folder)
    assert (status.state, status.step, status.skipped_steps, status.metrics["grad_norm"] > 0) == (
        "stopped",
        20,
        1,
        True,
    )
    holder = folder / ".lock_holder"
    holder.write_text(f"process {os.getpid()} on {platform.node()}")
    assert read_status(folder).state == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder.write_text(f"process {gone.pid} on {platform.node()}")
    assert read_status(folder).state == "stopped"
    holder.write_text(f"process {gone.pid} on another machine")
    assert read_status(folder).state == "running"
    (folder / "result.json").write_text("{}")
    assert read_status(folder).state == "finished"


def test_a_run_that_has_not_logged_a_step_is_one(tmp_path, capsys):
    from rdro_jax.cli import main

    (tmp_path / "config.yaml").write_text("seed: 42")
    (tmp_path / ".lock_holder").write_text(f"process {os.getpid()} on {platform.node()}")
    status = read_status(tmp_path)
    assert (status.state, status.step, status.metrics, status.written < 60) == ("running", 0, {}, True)
    assert main(["report", str(tmp_path)]) == 0
    assert "seed" in (tmp_path / "report.html").read_text()


def test_status_on_the_command_line(run_folders, capsys):
    from rdro_jax.cli import main

    assert main(["status", "--json", *map(str, run_folders)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["run"] for line in lines] == [str(folder) for folder in run_folders]
    assert lines[0]["metrics"]["eval_rewards/auc"] == pytest.approx(0.5 + 1 / 3)
    assert main(["status", str(run_folders[0])]) == 0
    assert "eval_rewards/auc" in capsys.readouterr().out


@pytest.mark.parametrize("colourless", [False, True])
def test_no_color_takes_the_colours_out(monkeypatch, capsys, colourless):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("FORCE_COLOR", *(["NO_COLOR"] if colourless else [])):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress("training", 4, 0) as show:
        show({"step": 2, "loss": 1.0})
    shown = capsys.readouterr().err
    assert "loss 1.0000" in shown
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", shown)) is not colourless
