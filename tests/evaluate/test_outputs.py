"""Answer files of AlpacaEval 2 and MT-Bench, with a model that answers what it was asked."""

import json

import pytest

from rdro_jax.errors import RecordError, StorageError
from rdro_jax.evaluate import outputs
from rdro_jax.generate import Sampling


@pytest.fixture
def asked(monkeypatch):
    """In place of a model: its answers quote the question, and what it was asked is kept."""
    calls = []

    def answer(assistant, prompts, sampling, *, seed):
        calls.extend((prompt, sampling.temperature) for prompt in prompts)
        return [f"to {prompt if isinstance(prompt, str) else prompt[-1]['content']}" for prompt in prompts]

    monkeypatch.setattr(outputs, "answer", answer)
    return calls


def test_alpaca_rows_are_in_order_and_keep_their_data_set(asked, tmp_path):
    prompts = [{"instruction": "one", "dataset": "koala"}, "two", [{"role": "user", "content": "three"}], *"x" * 20]
    rows = outputs.alpaca_outputs(None, prompts, Sampling(8, temperature=0.7), generator="mine")
    assert [row["instruction"] for row in rows[:4]] == ["one", "two", "three", "x"]
    assert [row["output"] for row in rows[:3]] == ["to one", "to two", "to three"]
    assert [row["dataset"] for row in rows[:2]] == ["koala", "rdro"]
    assert {row["generator"] for row in rows} == {"mine"}
    path = outputs.write_rows(tmp_path / "deep" / "out.json", rows)
    assert json.loads(path.read_text()) == rows
    assert list(outputs.read_objects(path)) == rows
    path = outputs.write_rows(tmp_path / "lines.jsonl", [{"output": "one\u2028line\x85of text"}])
    assert list(outputs.read_objects(path)) == [{"output": "one\u2028line\x85of text"}]


def test_the_second_turn_sees_the_first_answer_at_the_category_s_temperature(asked, tmp_path):
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
        {"question_id": 101, "category": "math", "turns": ["c", "d"]},
    ]
    rows = outputs.mt_bench_answers(None, questions, model_id="mine", max_new_tokens=8)
    assert [row["question_id"] for row in rows] == [81, 101]
    assert [row["choices"] for row in rows] == [
        [{"index": 0, "turns": ["to a", "to b"]}],
        [{"index": 0, "turns": ["to c", "to d"]}],
    ]
    assert all(set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"} for row in rows)
    assert {temperature for prompt, temperature in asked if prompt[0]["content"] == "a"} == {0.7}
    assert {temperature for prompt, temperature in asked if prompt[0]["content"] == "c"} == {0.0}
    assert [message["content"] for message in asked[-1][0][:3]] == ["a", "to a", "b"]
    path = outputs.write_rows(tmp_path / "mine.jsonl", rows)
    assert [json.loads(line) for line in path.read_text().splitlines()] == rows


def test_a_question_of_no_known_category_has_fastchat_s_default_temperature(asked):
    questions = [{"question_id": 1, "turns": ["a", "b"]}, {"question_id": 2, "category": "law", "turns": ["c", "d"]}]
    outputs.mt_bench_answers(None, questions, model_id="mine", max_new_tokens=8)
    assert {temperature for _, temperature in asked} == {0.7}


def test_questions_and_files_are_checked(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "turns": ["a", "b"]}\n\n{"question_id": 2, "turns": ["a"]}\n')
    with pytest.raises(RecordError, match=r"q.jsonl:2: wanted question_id, category and a list of two turns"):
        outputs.read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_text("[1]")
    with pytest.raises(RecordError, match="got int; wanted JSON objects"):
        list(outputs.read_objects(tmp_path / "q.jsonl"))
    with pytest.raises(RecordError, match="cannot be read"):
        list(outputs.read_objects(tmp_path / "none.jsonl"))
    with pytest.raises(RecordError, match="prompt 2: an object without a text `instruction`"):
        outputs.alpaca_outputs(None, ["one", {"prompt": "two"}], Sampling(8), generator="mine")
    with pytest.raises(StorageError, match="wanted a file that can be written"):
        outputs.write_rows(tmp_path / "q.jsonl" / "out.json", [])
