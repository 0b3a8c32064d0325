"""The files of `rdro eval alpaca` and `rdro eval mt-bench`, read and judged by the packages they are for.

The judges that those packages call over the network are replaced by a fixed answer; all that comes before is theirs.
"""

import json

import pytest
from tiny import write_folder

pytest.importorskip("alpaca_eval", reason="alpaca_eval is not installed")
pytest.importorskip("fastchat", reason="FastChat is not installed")
import alpaca_eval
from alpaca_eval.annotators import base
from fastchat.llm_judge import common, gen_judgment

from rdro_jax.cli import main

pytestmark = pytest.mark.parity

ALPACA = [{"instruction": f"a b {letter}", "dataset": "koala"} for letter in "cdef"]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["a b", "c"]},
    {"question_id": 82, "category": "roleplay", "turns": ['"quoted" \u2028 ü', "e\nf"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("tiny")) / "model")


def test_alpaca_eval_judges_the_file(model, tmp_path, monkeypatch):
    (tmp_path / "prompts.json").write_text(json.dumps(ALPACA))
    for name in ("ours", "base"):
        out = str(tmp_path / f"{name}.json")
        asked = ["--prompts", str(tmp_path / "prompts.json"), "--out", out, "--name", name]
        assert main(["eval", "alpaca", model, *asked, "--max-new-tokens", "4"]) == 0
    seen = []

    def first(prompts, **_):
        seen.extend(prompts)
        return {"completions": ["Output (a)"] * len(prompts)} | dict.fromkeys(
            ("price_per_example", "time_per_example"), [0.0] * len(prompts)
        )

    monkeypatch.setattr(base, "get_fn_completions", lambda name: first)
    rows = json.loads((tmp_path / "ours.json").read_text())
    rows[0]["output"] += " longer"
    (tmp_path / "ours.json").write_text(json.dumps(rows))
    table, annotations = alpaca_eval.evaluate(
        model_outputs=tmp_path / "ours.json",
        reference_outputs=tmp_path / "base.json",
        annotators_config="test",
        caching_path=None,
        fn_metric="get_winrate",
        sort_by="win_rate",
        precomputed_leaderboard=None,
        output_path=tmp_path,
        is_return_instead_of_print=True,
    )
    assert table.loc["ours", "avg_length"] == int(sum(len(row["output"]) for row in rows) / 4)
    assert {row["output_2"] for row in annotations} == {row["output"] for row in rows}
    assert any(row["instruction"] == "a b c" and row["output_2"].endswith("longer") for row in annotations)
    assert any("a b c" in prompt for prompt in seen)


def test_fastchat_judges_both_turns_of_the_file(model, tmp_path, monkeypatch):
    questions, answers = tmp_path / "question.jsonl", tmp_path / "model_answer"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    asked = ["--questions", str(questions), "--out", str(answers / "ours.jsonl"), "--max-new-tokens", "4"]
    assert main(["eval", "mt-bench", model, *asked]) == 0
    read, found = common.load_questions(str(questions), None, None), common.load_model_answers(str(answers))
    template = {"name": "n", "type": "single", "system_prompt": "s", "output_format": "[[rating]]"}
    template["prompt_template"] = "{question_1}|{answer_1}|{question_2}|{answer_2}"
    judge = common.Judge("gpt-4", template, multi_turn=True)
    common.check_data(read, found, {}, common.get_model_list(str(answers)), {"judge": judge})
    monkeypatch.setattr(common, "chat_completion_openai", lambda *_, **__: "good: [[7]]")
    matches = gen_judgment.make_match_single(read, ["ours"], found, judge, multi_turn=True)
    for match in matches:
        common.play_a_match_single(match, str(tmp_path / "judgment.jsonl"))
    told = [json.loads(line) for line in (tmp_path / "judgment.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["score"], row["turn"]) for row in told] == [(81, 7, 2), (82, 7, 2)]
    for row, question in zip(told, QUESTIONS, strict=True):
        first, one, second, two = row["user_prompt"].split("|")
        assert [first, second] == question["turns"]
        assert [one, two] == found["ours"][question["question_id"]]["choices"][0]["turns"]
