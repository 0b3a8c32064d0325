"""Win rates against direct computations, and a judge that prefers long answers."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from rdro_jax.cli import main
from rdro_jax.errors import ConfigError, RecordError
from rdro_jax.evaluate.judges import RIDGE, compare, controlled_rate, length_terms, load_judge


def rows_of(outputs):
    return [{"instruction": f"prompt {number}", "output": text} for number, text in enumerate(outputs)]


def longer(prompt, completion):
    return len(completion)


def test_win_rate_counts_ties_half_and_lies_in_its_interval():
    first, second = rows_of(["aaa", "b", "cc", "dddd"]), rows_of(["aa", "bb", "cc", "d"])
    found = compare(first, second[::-1], longer)
    assert found["win_rate"] == 0.625
    assert found["mean_scores"] == found["mean_lengths"] == [2.5, 1.75]
    low, high = found["win_rate_interval"]
    assert 0 <= low < 0.625 < high <= 1


def test_length_control_takes_away_what_length_explains():
    """A judge that only counts letters prefers the longer answers; at equal lengths nothing is left of it."""
    random = np.random.default_rng(0)
    lengths = random.integers(20, 60, (400, 2)) + np.array([8, 0])
    first, second = (rows_of("x" * n for n in column) for column in lengths.T)
    found = compare(first, second, longer)
    assert found["win_rate"] > 0.6
    assert abs(found["length_controlled_win_rate"] - 0.5) < 0.15


def by(outcome, skew, weight):
    """The same regression by a general optimiser."""

    def objective(ab):
        p = 1 / (1 + np.exp(-(ab[0] + ab[1] * skew)))
        likelihood = outcome * np.log(p) + (1 - outcome) * np.log1p(-p)
        return -(weight * likelihood).sum() + RIDGE / 2 * (ab**2).sum()

    return 1 / (
        1
        + np.exp(-minimize(objective, np.zeros(2), method="Nelder-Mead", options={"fatol": 1e-12, "xatol": 1e-9}).x[0])
    )


def test_the_regression_equals_a_general_optimiser_s():
    random = np.random.default_rng(1)
    skew = length_terms(random.normal(size=60) * 30)
    outcome = np.where(random.random(60) < 1 / (1 + np.exp(-(0.7 + 2 * skew))), 1.0, 0.0)
    outcome[:5] = 0.5
    weight = np.stack([np.ones(60), random.integers(0, 4, 60)])
    wanted = [by(outcome, skew, row) for row in weight]
    np.testing.assert_allclose(controlled_rate(outcome, skew, weight), wanted, atol=1e-6)
    assert controlled_rate(np.ones(60), skew, np.ones((1, 60)))[0] > 0.99
    np.testing.assert_allclose(controlled_rate(np.full(60, 0.5), np.zeros(60), np.ones((1, 60))), 0.5)
    np.testing.assert_array_equal(length_terms(np.full(3, 7.0)), np.zeros(3))


def test_faults_are_named(tmp_path):
    with pytest.raises(RecordError, match="'prompt 1' is answered by one model only"):
        compare(rows_of(["a", "b"]), rows_of(["a"]), longer)
    with pytest.raises(RecordError, match="wanted the texts instruction and output"):
        compare([{"instruction": "x"}], rows_of(["a"]), longer)
    with pytest.raises(ConfigError, match="wanted module:function"):
        load_judge("length")
    with pytest.raises(ConfigError, match="no_such_module"):
        load_judge("no_such_module:score")


def test_the_command_compares_files_with_a_judge_of_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_judge.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, outputs in (("a", ["xx", "yy"]), ("b", ["x", "y"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows_of(outputs)))
    assert main(["eval", "judge", "a.json", "b.json", "--judge", "mine_judge:score"]) == 0
    assert json.loads(capsys.readouterr().out)["win_rate"] == 1
    (tmp_path / "b.json").write_text("[")
    assert main(["eval", "judge", "a.json", "b.json", "--judge", "mine_judge:score"]) == 3
    assert "b.json:1: not JSON" in capsys.readouterr().err
