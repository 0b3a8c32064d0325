"""`rdro prepare` and `rdro preview` from outside, and a run that finds what was prepared."""

import json

import pytest

from rdro_jax import cli

ROWS = [
    {"prompt": f"Question {i}?", "completion": f"answer {i}", "label": i % 2 == 0, "source": "x"} for i in range(30)
]


@pytest.fixture
def run(capsys, tmp_path, chatml_folder, write_rows):
    """Runs a command on a config of these rows: exit code, stdout, stderr."""

    def call(command, *overrides, rows=ROWS, loss="rdro"):
        config = tmp_path / "config.yaml"
        values = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": str(chatml_folder)},
            "data": {"train": write_rows(rows), "max_length": 128},
            "loss": {"name": loss},
        }
        config.write_text(json.dumps(values))
        code = cli.main([command, str(config), *overrides])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_prepare_needs_no_weights_and_says_what_became_of_the_rows(run, tmp_path):
    code, out, err = run("prepare")
    assert code == 0
    assert out.splitlines()[0].startswith("train: 30 examples of 30 unpaired rows (15 desirable, 15 not; alpha 0.5000)")
    assert "30 rows prepared" in err
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())["train"]
    assert (report["kept"], report["ignored_columns"]) == (30, ["source"])
    assert 0 < report["packing"]["utilisation"] <= 1
    again = run("prepare")
    assert again[:2] == (0, out)
    assert "nothing to do" in again[2]


def test_prepare_counts_held_out_prompts_that_are_trained_on(run, write_rows, tmp_path):
    code, _, err = run("prepare", f"data.eval={write_rows(ROWS[:4], 'eval.jsonl')}")
    assert code == 0
    assert "4 of 4 held-out examples have a prompt trained on" in err
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["eval"]["prompts_in_train"] == 4
    code, out, err = run("prepare", "data.heldout_fraction=0.5")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["train", "eval", "report"]
    assert "trained on" not in err


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("data.train=none.jsonl", 3, "data.train: no file 'none.jsonl'"),
        ("model.path=none", 4, "none: no such folder"),
        ("data.truncatio=drop", 2, "data.truncatio: unknown key; did you mean 'truncation'?"),
        ("data.truncation=error data.max_length=8", 3, "row: longer than max_length"),
    ],
)
@pytest.mark.parametrize("command", ["prepare", "preview"])
def test_faults_have_their_exit_codes(command, override, code, said, run):
    got, out, err = run(command, *override.split())
    if command == "preview" and "max_length" in override:  # bad rows are shown, not refused
        assert got == 0
        assert said in out
        return
    assert got == code
    assert said in err


def test_preview_shows_rows_and_writes_a_page(run, tmp_path):
    code, out, _ = run("preview", "--rows", "2")
    assert (code, out.count("[[answer"), out.count("--- ")) == (0, 2, 2)
    page = tmp_path / "page.html"
    assert run("preview", "--html", str(page))[:2] == (0, f"{page}\n")
    assert page.read_text().count("<pre>") == 5


def test_preview_knows_what_the_loss_wants(run):
    code, out, _ = run("preview", rows=[{"prompt": "a", "chosen": "b", "rejected": "c"}], loss="dpo")
    assert code == 0
    assert ": chosen, " in out
    assert run("preview", loss="dpo")[0] == 3
