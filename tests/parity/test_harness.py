"""Our class in lm-evaluation-harness against its own `--model hf`, request by request, on the same folder."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from safetensors import safe_open
from tiny import write_folder
from transformers import AutoTokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from rdro_jax.cli import main
from rdro_jax.data import load_tokenizer
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate.harness import GENERATION_ROWS, make_harness_model
from rdro_jax.generate import load
from rdro_jax.parallel import make_mesh

pytestmark = pytest.mark.parity

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("tiny")) / "model"
    # One tokenizer for both: transformers rebuilds another from a test's tokenizer.json by the model's type.
    same = {"tokenizer": load_tokenizer(folder), "max_length": 128}
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3, **same)
    ours = make_harness_model(folder)
    ours.max_length = 128
    return ours, theirs


@pytest.fixture(scope="module")
def real(exported_smollm2):
    """Both over a real model that we exported, each with the tokenizer that it reads by itself."""
    theirs = HFLM(pretrained=str(exported_smollm2), device="cpu", dtype="float32", batch_size=3, max_length=64)
    with pytest.MonkeyPatch.context() as patch:
        # Of the tests' eight devices one: a batch for all of them would be mostly padding.
        patch.setattr(load, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
        ours = make_harness_model(exported_smollm2)
    ours.max_length = 64
    return ours, theirs


def test_the_exported_model_is_the_imported_one_in_float32(smollm2, exported_smollm2):
    """Its tensors by name, those that the tied head repeats left out, and its tokens."""
    with safe_open(exported_smollm2 / "model.safetensors", "numpy") as written:
        names = set(written.keys())
        assert {str(written.get_slice(name).get_dtype()) for name in names} == {"F32"}
        with safe_open(smollm2 / "model.safetensors", "torch") as read:
            assert names == set(read.keys())
            for name in names:
                assert (read.get_tensor(name).float().numpy() == written.get_tensor(name)).all(), name
    ids = [AutoTokenizer.from_pretrained(folder)(TEXT).input_ids for folder in (smollm2, exported_smollm2)]
    assert ids[0] == ids[1]


def requests(kind, arguments):
    return [Instance(kind, {}, argument, index) for index, argument in enumerate(arguments)]


def words(random, count):
    return " ".join(random.choice(LETTERS, count))


def test_loglikelihood(models):
    ours = models[0]
    random = np.random.default_rng(0)
    asked = [(words(random, random.integers(1, 40)), " " + words(random, random.integers(1, 9))) for _ in range(12)]
    asked += [("", "good bad"), (words(random, 150), " good"), ("a ", "b c"), ("<user> a <assistant>", " good <eos>")]
    got, wanted = (model.loglikelihood(requests("loglikelihood", asked), disable_tqdm=True) for model in models)
    np.testing.assert_allclose([logp for logp, _ in got], [logp for logp, _ in wanted], atol=1e-3)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]
    # A continuation that the model itself would write is greedy, for both.
    written = ours.generate_until(requests("generate_until", [(asked[0][0], {"max_gen_toks": 2})]))[0]
    certain = [(asked[0][0], " " + written)]
    greedy = [model.loglikelihood(requests("loglikelihood", certain), disable_tqdm=True)[0][1] for model in models]
    assert greedy == [True, True]


def test_rolling(models):
    random = np.random.default_rng(1)
    asked = [(words(random, count),) for count in (1, 5, 127, 128, 129, 300)]
    got, wanted = (
        model.loglikelihood_rolling(requests("loglikelihood_rolling", asked), disable_tqdm=True) for model in models
    )
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_generate_until(models):
    random = np.random.default_rng(2)
    options = {"until": ["z", "good"], "max_gen_toks": 12, "do_sample": False}
    asked = [(words(random, random.integers(1, 30)), dict(options)) for _ in range(6)]
    asked += [(words(random, 140), {"until": [], "max_gen_toks": 5}), ("a b", {"until": "q", "max_new_tokens": 7})]
    got, wanted = (
        model.generate_until(
            requests("generate_until", asked), **({} if model is models[0] else {"disable_tqdm": True})
        )
        for model in models
    )
    assert got == wanted


def test_repeated_requests_are_sampled_each_for_itself(models):
    """A temperature alone means sampling, as for `--model hf`; no two batches draw the same."""
    asked = [("a b", {"until": [], "max_gen_toks": 12, "temperature": 2.0})] * (2 * GENERATION_ROWS)
    got = models[0].generate_until(requests("generate_until", asked))
    assert len(set(got)) == len(got)


def test_an_answer_longer_than_the_window_is_refused(models):
    with pytest.raises(ConfigError, match="answers of 128 tokens, the model's window is 128"):
        models[0].generate_until(requests("generate_until", [("a b", {"max_gen_toks": 128})]))


REAL = [
    ("The capital of France is", " Paris."),
    ("Q: What is 12 + 30?\nA:", " 42"),
    ("", "Once upon a time"),
    ("Water boils at 100 ", "degrees"),  # the blank belongs to the continuation
    ("In the beginning there was a word. " * 12, " The word was long"),  # longer than the window
]
TEXT = "Rain fell on the harbour all night, and by the morning the boats had gone."


def test_a_real_model_scores_texts_as_model_hf(real):
    got, wanted = (model.loglikelihood(requests("loglikelihood", REAL), disable_tqdm=True) for model in real)
    np.testing.assert_allclose([logp for logp, _ in got], [logp for logp, _ in wanted], atol=1e-3, rtol=0)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]


def test_a_real_model_scores_long_texts_as_model_hf(real, exported_smollm2):
    """Over two windows of 64 tokens torch's float32 is 1.1e-3 to 1.4e-3 nats from its float64, ours 5e-5."""
    exact = HFLM(pretrained=str(exported_smollm2), device="cpu", dtype="float64", batch_size=3, max_length=64)
    asked = [(TEXT,), ("Hello",), (f"{TEXT} " * 5,)]
    got, rounded, wanted = (
        np.array(model.loglikelihood_rolling(requests("loglikelihood_rolling", asked), disable_tqdm=True))
        for model in (*real, exact)
    )
    np.testing.assert_allclose(got, wanted, atol=2e-4, rtol=0)
    assert (abs(got - rounded) <= 1e-3 + abs(rounded - wanted)).all()


def test_a_real_model_writes_what_model_hf_writes(real):
    ours, theirs = real
    chat = ours.apply_chat_template([{"role": "user", "content": "Name three colours."}])
    options = {"max_gen_toks": 16, "do_sample": False}
    asked = [
        (chat, {"until": [], **options}),
        ("Q: What is the capital of Italy?\nA:", {"until": ["\n", "Q:"], **options}),
        ("1, 2, 3, 4,", {"until": [" 9"], **options}),
    ]
    got = ours.generate_until(requests("generate_until", asked))
    assert got == theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert all(got)
    assert "\n" not in got[1]
    assert " 9" not in got[2]


TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: ["a", "b c", "z"]
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "tiny_reasoning": """
output_type: generate_until
description: "Say which letter comes next."
doc_to_text: "Q: {{question}}\\nA: Let's think step by step."
doc_to_target: "{{answer}}"
num_fewshot: 1
generation_kwargs: {until: ["</s>", "Q", "\\n\\n"], do_sample: false, temperature: 0.0, max_gen_toks: 12}
filter_list:
  - name: get-answer
    filter: [{function: regex, regex_pattern: "([a-z])"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
"""Of the three kinds, the last in the form of BIG-Bench Hard's."""


def test_tasks_from_end_to_end(models, tmp_path, capsys):
    """`rdro eval lm` on tasks of a folder of one's own, beside the harness with `--model hf`."""
    random = np.random.default_rng(5)
    rows = [{"question": words(random, 6), "answer": str(random.choice(["a", "z"]))} for _ in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test\n"
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}{task}")
    ours, theirs = models
    command = ["eval", "lm", str(ours.folder), "--tasks", ",".join(TASKS), "--include-path", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    got = json.loads(printed[printed.index("{") :])["results"]
    wanted = simple_evaluate(model=theirs, tasks=list(TASKS), task_manager=TaskManager(include_path=str(tmp_path)))
    for name in TASKS:
        figures = {key: value for key, value in wanted["results"][name].items() if isinstance(value, float)}
        assert figures
        assert {key: got[name][key] for key in figures} == pytest.approx(figures, rel=1e-4)


def test_a_template_that_refuses_system_turns(models):
    history = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    with pytest.MonkeyPatch.context() as patch:
        for model in models:
            patch.setattr(model.tokenizer, "chat_template", refusal + "{{ messages[0].content }}")
        assert [model.apply_chat_template(history) for model in models] == ["b", "b"]


def test_chat_template(models):
    history = [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    ours, theirs = (model.apply_chat_template(history) for model in models)
    assert ours == theirs
