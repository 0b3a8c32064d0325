"""Every study in its fast form, and what is said where one fails or cannot be run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rdro_jax import cli
from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.study import STUDIES, Check, MissedError, Options, StudyReport, run
from rdro_jax.study.report import Curve, Panel, to_json

FAST = Options(seeds=2, fast=True)


def report(*checks: Check, name: str = "alpha") -> StudyReport:
    panel = Panel("a title", "x", "y", (Curve("a curve", np.array([1, 2]), [0.5, float("nan")]),))
    return StudyReport(name, "a claim", "a setting", checks, (panel,))


@pytest.mark.parametrize("name", STUDIES)
def test_study_reaches_its_figures(name, tmp_path):
    options = Options(seeds=1, fast=True) if name == "tree" else FAST
    [found] = run(name, tmp_path, options)
    assert found.name == name
    assert any(check.wanted for check in found.checks)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert [check["passed"] for check in written["checks"]] == [True] * len(found.checks)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_consistency_compares_the_losses_asked_for(tmp_path):
    [found] = run("consistency", tmp_path, Options(seeds=1, fast=True, losses=("sft",)))
    assert [curve.label for curve in found.panels[0].curves] == ["sft"]


def test_same_seed_same_figures():
    again = [to_json(STUDIES["alpha_hat"](FAST)) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("check", "passed"),
    [
        (Check("between", 0.5, 0.4, 0.6), True),
        (Check("on the bound", 0.6, 0.4, 0.6), False),
        (Check("below", 0.3, above=0.4), False),
        (Check("no number", float("nan"), below=1.0), False),
        (Check("told only", float("nan")), True),
    ],
    ids=lambda value: getattr(value, "what", None),
)
def test_checks(check, passed):
    assert check.passed is passed
    assert bool(check.wanted) == (check.what != "told only")


def test_json_has_null_for_what_is_no_number():
    written = json.loads(to_json(report(Check("c", float("inf"), below=1.0))))
    assert written["checks"][0] == {"what": "c", "measured": None, "above": None, "below": 1.0, "passed": False}
    assert written["panels"][0]["curves"][0]["y"] == [0.5, None]


@pytest.fixture
def one_study(monkeypatch):
    """Puts a report in the place of the study `alpha`."""
    return lambda result: monkeypatch.setitem(STUDIES, "alpha", lambda options: result)


def test_a_missed_figure_is_an_error_after_everything_is_written(tmp_path, one_study, capsys):
    one_study(report(Check("some distance", 0.5, below=0.1)))
    with pytest.raises(MissedError, match=r"^1 figures missed: alpha: some distance: got 0\.5, wanted < 0\.1$"):
        run("alpha", tmp_path, FAST)
    assert {path.name for path in tmp_path.iterdir()} == {"alpha.json", "alpha.png"}
    assert cli.main(["study", "alpha", "--out", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_all_writes_a_summary(tmp_path, monkeypatch):
    for name in STUDIES:
        monkeypatch.setitem(STUDIES, name, lambda options, name=name: report(Check("c", 1.0, 0.0), name=name))
    run("all", tmp_path, FAST)
    summary = json.loads((tmp_path / "studies.json").read_text())
    assert list(summary["studies"]) == list(STUDIES)
    assert all(study["passed"] for study in summary["studies"].values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["consistancy"], r"study: got 'consistancy'; wanted all or one of consistency, "),
        (["consistency", "--losses", "rdro,drdo"], r"--losses: got 'drdo'; wanted some of rdro, "),
        (["tree", "--losses", "rdro"], r"--losses: study 'tree' compares fixed losses"),
        (["alpha", "--seeds", "0"], r"argument --seeds: got 0; wanted 1 or more"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words, message, capsys):
    assert cli.main(["study", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_matplotlib_nothing_is_started(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'rdro_jax\[report\]'"):
        run("all", tmp_path, FAST)


def test_a_folder_that_cannot_be_written(tmp_path, one_study):
    (tmp_path / "file").write_text("")
    one_study(report(Check("c", 1.0)))
    with pytest.raises(StorageError, match=r"--out: .*file/out: "):
        run("alpha", tmp_path / "file" / "out", FAST)


def test_help_names_every_study(capsys):
    with pytest.raises(SystemExit):
        cli.main(["study", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in STUDIES)


def test_documents_show_every_study():
    text = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    assert all(f"### {name}\n" in text for name in STUDIES)
