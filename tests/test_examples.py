"""Every file of examples/ runs, and does what it says."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import write_folder

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loss_stops_at_its_margin():
    found = load("own_loss").main()
    assert found["liked"] == pytest.approx(2.0, abs=0.26)
    assert found["other"] == pytest.approx(-2.0, abs=0.26)


def test_toy_becomes_the_mixture_then_what_was_liked():
    found = load("toy_from_scratch").main()
    assert found["sft"] == pytest.approx(0.3, abs=0.1)
    assert found["rdro"] > 0.8


def test_own_forward_tells_the_classes_apart():
    assert load("own_forward").main() > 0.5


def test_the_datas_alpha_is_the_best():
    found = load("sweep_alpha").main()
    assert min(found, key=found.get) == 0.4
    assert found[0.4] < 1e-4


def test_gradients_have_the_signs_of_the_labels():
    for gradient in load("other_logps").main().values():
        assert (np.sign(gradient) == [-1, 1, 1, -1]).all()


def test_evaluation_reads_folders(tmp_path):
    folder = write_folder(tmp_path)
    model = str(folder / "model")
    figures = load("evaluate_policy").main(model, model, str(folder / "eval.jsonl"))
    assert figures["rewards/auc"] == pytest.approx(0.5)  # a policy against itself


def test_labels_are_the_better_half(tmp_path, monkeypatch):
    samples, rows = tmp_path / "samples.jsonl", tmp_path / "rows.jsonl"
    samples.write_text(
        "".join(json.dumps({"prompt": "p", "completion": "\u2028" * n}, ensure_ascii=False) + "\n" for n in range(1, 6))
    )
    (tmp_path / "length.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load("label_samples").main(str(samples), str(rows), "length:score") == 3
    assert [json.loads(line)["label"] for line in rows.open()] == [False] * 3 + [True] * 2


def test_every_example_is_run():
    tested = Path(__file__).read_text()
    assert all(f'load("{path.stem}")' in tested for path in EXAMPLES.glob("*.py"))
