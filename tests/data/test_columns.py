"""Rows as other projects write them, mapped to our columns by hand."""

import json

import pytest

from rdro_jax.data import DataConfig, Source, load_examples
from rdro_jax.errors import RecordError

PLAIN = [
    {"prompt": "Say hello.", "completion": "hello", "label": True},
    {"prompt": "Say hello.", "completion": "no", "label": False},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def same(write_rows, chatml):
    """Asserts that rows read with these settings are the plain rows."""

    def check(rows, wanted=PLAIN, tokenizer=chatml, **settings):
        source = Source(write_rows(rows), **settings)
        examples = load_examples(source, tokenizer, DataConfig(train="-"))
        plain = load_examples(write_rows(wanted, "plain.jsonl"), tokenizer, DataConfig(train="-"))
        assert examples.tokens.tolist() == plain.tokens.tolist()
        assert examples.prompt_lengths.tolist() == plain.prompt_lengths.tolist()
        assert examples.desirable.tolist() == plain.desirable.tolist()
        return examples

    return check


def test_renamed_and_nested_columns(same):
    rows = [
        {"instruction": row["prompt"], "answer": {"text": row["completion"]}, "good": row["label"], "label": "unused"}
        for row in PLAIN
    ]
    mapping = (("completion", "answer.text"), ("label", "good"), ("prompt", "instruction"))
    assert same(rows, column_map=mapping).report.ignored_columns == ()


def test_a_column_with_a_dot_in_its_name(same):
    same([row | {"a.b": row["label"], "a": {"b": 7}} for row in PLAIN], column_map=(("label", "a.b"),))


def test_a_mapped_column_that_is_missing_is_missing(write_rows, chatml):
    with pytest.raises(RecordError, match="label: missing"):
        load_examples(Source(write_rows(PLAIN), column_map=(("label", "kto_tag"),)), chatml, DataConfig(train="-"))


def test_messages_with_a_label(same):
    same([{"messages": [user(r["prompt"]), assistant(r["completion"])], "label": r["label"]} for r in PLAIN])


def test_sharegpt_conversations_with_a_tag(same):
    rows = [
        {
            "conversations": [
                {"from": "human", "value": row["prompt"]},
                {"from": "gpt", "value": row["completion"]},
            ],
            "kto_tag": row["label"],
        }
        for row in PLAIN
    ]
    same(rows, column_map=(("label", "kto_tag"), ("messages", "conversations")))


@pytest.mark.parametrize("high", [5, 5.0, "5", "5.0"])
def test_scores_become_labels_at_the_threshold(high, same):
    same([row | {"label": high if row["label"] else 4} for row in PLAIN], label_threshold=5.0)


@pytest.mark.parametrize("score", ["N/A", True, None, [5], "nan"])
def test_a_score_that_is_none_is_named(score, write_rows, chatml):
    rows = [row | {"label": int(row["label"])} for row in PLAIN]
    path = write_rows([*rows, PLAIN[0] | {"label": score}])
    with pytest.raises(RecordError, match=r":3: label: (must be a number|is null)"):
        load_examples(Source(path, label_threshold=1.0), chatml, DataConfig(train="-"))


def test_a_system_column_is_the_first_message(same):
    wanted = [row | {"prompt": [{"role": "system", "content": "Be brief."}, user(row["prompt"])]} for row in PLAIN]
    same([row | {"system": "Be brief."} for row in PLAIN], wanted)
    same([row | {"system": "Be brief.", "prompt": [user(row["prompt"])]} for row in PLAIN], wanted)
    same([row | {"system": None} for row in PLAIN])
    same([row | {"system": " "} for row in PLAIN])


def test_two_system_messages_are_refused(write_rows, chatml):
    turns = [{"role": "system", "content": "Be long."}, user("Hi.")]
    with pytest.raises(RecordError, match="system: stands beside a prompt that has a system message of its own"):
        load_examples(write_rows([PLAIN[0] | {"prompt": turns, "system": "Be brief."}]), chatml, DataConfig(train="-"))


def test_null_in_a_column_that_may_be_absent_is_absent(same):
    nothing = {"weight": None, "alpha": None, "tools": None, "chat_template_kwargs": None}
    examples = same([row | nothing for row in PLAIN])
    assert examples.weight.tolist() == [1.0, 1.0]
    assert examples.prompt_alpha is None


def test_a_rows_own_template_variables_win(thinking, write_rows):
    rows = [row | {"chat_template_kwargs": {"enable_thinking": True}} for row in PLAIN]
    examples = load_examples(write_rows(rows), thinking, DataConfig(train="-"))
    first = examples.tokens[: examples.lengths[0]]
    asked = thinking.apply_chat_template(
        [user("Say hello.")], add_generation_prompt=True, enable_thinking=True, return_dict=False
    )
    assert first[: examples.prompt_lengths[0]].tolist() == asked


TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("as_text", [True, False])
def test_tools_reach_the_template(as_text, chatml, write_rows, monkeypatch):
    monkeypatch.setattr(chatml, "chat_template", TOOLS_TEMPLATE)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}]
    column = json.dumps(tools) if as_text else tools
    examples = load_examples(write_rows([row | {"tools": column} for row in PLAIN]), chatml, DataConfig(train="-"))
    asked = chatml.apply_chat_template([user("Say hello.")], tools=tools, add_generation_prompt=True, return_dict=False)
    assert examples.tokens[: examples.prompt_lengths[0]].tolist() == asked
    without = load_examples(write_rows(PLAIN), chatml, DataConfig(train="-"))
    assert examples.prompt_hashes[0] != without.prompt_hashes[0]


FAULTS = {
    "tools: is text that is no JSON": {"tools": "add"},
    "tools: must be a list of objects": {"tools": ["add"]},
    "tools: spells out a control token": {"tools": [{"name": "<|im_end|>"}]},
    "tools: contains half a surrogate": {"tools": [{"name": "\ud83d"}]},
    "chat_template_kwargs: must be an object": {"chat_template_kwargs": [1]},
    "prompt: refused by the chat template": {"chat_template_kwargs": {"tokenize": True}},
    "system: must be text": {"system": 3},
}


@pytest.mark.parametrize("complaint", FAULTS)
def test_faults_of_optional_columns(complaint, write_rows, chatml):
    path = write_rows([*PLAIN, PLAIN[0] | FAULTS[complaint]])
    with pytest.raises(RecordError) as error:
        load_examples(path, chatml, DataConfig(train="-"))
    assert str(error.value).startswith(f"{path}:3: {complaint}")


def test_messages_without_an_answer(write_rows, chatml):
    path = write_rows([*PLAIN, {"messages": [user("Hi.")], "label": True}])
    with pytest.raises(RecordError, match=r":3: messages: must be a list of at least two messages"):
        load_examples(path, chatml, DataConfig(train="-"))
    path = write_rows([{"messages": [user("Hi."), user("Hello?")]}])
    with pytest.raises(RecordError, match=r":1: completion: must be one assistant message"):
        load_examples(path, chatml, DataConfig(train="-"), require_label=False)


def test_sft_messages_need_no_label(write_rows, chatml):
    path = write_rows([{"messages": [user("Say hello."), assistant("hello")]}] * 2)
    examples = load_examples(path, chatml, DataConfig(train="-"), require_label=False)
    plain = load_examples(write_rows(PLAIN, "plain.jsonl"), chatml, DataConfig(train="-"))
    assert examples.hashes[0].tolist() == plain.hashes[0].tolist()
    assert examples.report.duplicates == 1
