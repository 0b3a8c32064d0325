"""Win rates against direct computations, and a judge that prefers long answers."""

import json
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from rdro_jax.cli import main
from rdro_jax.errors import ConfigError, RecordError
from rdro_jax.evaluate.judges import RIDGE, compare, controlled_rate, instruction_ease, length_terms, load_judge


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


def by(design, outcome, weight, penalty):
    """The same regression by a general optimiser."""

    def objective(found):
        scores = design @ found
        likelihood = outcome * -np.logaddexp(0, -scores) + (1 - outcome) * -np.logaddexp(0, scores)
        return -(weight * likelihood).sum() + (penalty * found**2).sum() / 2

    return minimize(objective, np.zeros(design.shape[1]), method="BFGS", options={"gtol": 1e-9}).x


def test_the_regression_equals_a_general_optimiser_s():
    random = np.random.default_rng(1)
    features = np.stack([length_terms(random.normal(size=60) * 30), random.normal(size=60)], axis=1)
    outcome = np.where(random.random(60) < 1 / (1 + np.exp(-(0.7 + features @ [2, 1]))), 1.0, 0.0)
    outcome[:5] = 0.5
    weight = np.stack([np.ones(60), random.integers(0, 4, 60)])
    for columns in (features[:, :1], features):
        design = np.column_stack([np.ones(60), columns])
        found = [by(design, outcome, row, np.full(design.shape[1], RIDGE)) for row in weight]
        equal = design * (np.arange(design.shape[1]) != 1)
        wanted = [(row / (1 + np.exp(-equal @ ab))).sum() / row.sum() for row, ab in zip(weight, found, strict=True)]
        np.testing.assert_allclose(controlled_rate(outcome, columns, weight), wanted, atol=1e-6)
    skew, once = features[:, :1], np.ones((1, 60))
    assert controlled_rate(np.ones(60), skew, once)[0] > 0.99
    np.testing.assert_allclose(controlled_rate(np.full(60, 0.5), np.zeros((60, 1)), once), 0.5)
    np.testing.assert_array_equal(length_terms(np.full(3, 7.0)), np.zeros(3))


def test_prompts_that_others_win_are_easy():
    random = np.random.default_rng(2)
    ease = random.normal(size=300) * 1.5
    skews = [length_terms(random.normal(size=300)) for _ in range(12)]
    outcomes = [
        (random.random(300) < 1 / (1 + np.exp(-(a + b * skew + ease)))) * 1.0
        for a, b, skew in zip(np.linspace(-1, 1, 12), np.linspace(0, 2, 12), skews, strict=True)
    ]
    assert np.corrcoef(instruction_ease(outcomes, skews), ease)[0, 1] > 0.85
    models, few = [np.array(part)[:2, :8] for part in (outcomes, skews)]
    who = np.repeat(np.eye(2), 8, axis=0)
    design = np.hstack([who, who * few.reshape(-1, 1), np.tile(np.eye(8), (2, 1))])
    wanted = by(design, models.ravel(), np.ones(16), np.array([RIDGE] * 4 + [1] * 8))
    np.testing.assert_allclose(instruction_ease(models, few), wanted[4:], atol=1e-5)


def test_other_models_tell_length_from_an_easy_prompt(tmp_path, capsys):
    """Length changes nothing here, but our long answers met easy prompts: length alone takes our wins away."""
    random = np.random.default_rng(3)
    ease = random.random(400) < 0.75
    rows = {"base": [f"{'x' * 40} 0"] * 400}
    for name, follows in (("ours", 6), *((f"model {n}", 0) for n in range(8))):
        wins = random.random(400) < np.where(ease, 0.9, 0.2)
        size = (40 + np.where(ease, follows, -follows) + random.normal(size=400) * 6).astype(int)
        rows[name] = [f"{'x' * n} {1 if won else -1}" for n, won in zip(size, wins, strict=True)]
    files = [tmp_path / f"{name}.json" for name in rows]
    for file, texts in zip(files, rows.values(), strict=True):
        file.write_text(json.dumps(rows_of(texts)))
    base, ours, *others = map(str, files)
    bias = []
    for more in ((), others):
        told = [word for file in more for word in ("--other", file)]
        assert main(["eval", "judge", ours, base, "--judge", f"{__name__}:last_number", *told]) == 0
        found = json.loads(capsys.readouterr().out)
        low, high = found["length_controlled_interval"]
        assert low < found["length_controlled_win_rate"] < high
        bias.append(found["length_controlled_win_rate"] - found["win_rate"])
    assert bias[0] < -0.02
    assert abs(bias[1]) < abs(bias[0]) / 2


def last_number(prompt, completion):
    return float(completion.split()[-1])


def test_faults_are_named(tmp_path):
    with pytest.raises(RecordError, match="'prompt 1' is answered by one model only"):
        compare(rows_of(["a", "b"]), rows_of(["a"]), longer)
    with pytest.raises(RecordError, match="wanted the texts instruction and output"):
        compare([{"instruction": "x"}], rows_of(["a"]), longer)
    for given in (None, "good", float("nan")):
        with pytest.raises(ConfigError, match=r"an answer to 'prompt 0': got .*, no number"):
            compare(rows_of(["a"]), rows_of(["b"]), lambda prompt, completion, given=given: given)
    with pytest.raises(ConfigError, match="last_number: an answer to 'prompt 0': ValueError: could not convert"):
        compare(rows_of(["a"]), rows_of(["b"]), last_number)
    with pytest.raises(RecordError, match="row 2: 'prompt 0' is answered twice"):
        compare(rows_of(["a"]) * 2, rows_of(["b"]), longer)
    with pytest.raises(ConfigError, match="wanted module:function"):
        load_judge("length")
    with pytest.raises(ConfigError, match="no_such_module"):
        load_judge("no_such_module:score")


def test_the_command_compares_files_with_a_judge_of_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_judge.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    monkeypatch.chdir(tmp_path)
    # As the installed command has it, whose path does not begin with the working directory.
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    for name, outputs in (("a", ["xx", "yy"]), ("b", ["x", "y"])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows_of(outputs)))
    assert main(["eval", "judge", "a.json", "b.json", "--judge", "mine_judge:score"]) == 0
    assert json.loads(capsys.readouterr().out)["win_rate"] == 1
    (tmp_path / "b.json").write_text("[")
    assert main(["eval", "judge", "a.json", "b.json", "--judge", "mine_judge:score"]) == 3
    assert "b.json:1: not JSON" in capsys.readouterr().err
