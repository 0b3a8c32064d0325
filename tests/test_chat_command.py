"""A conversation is the batch of one prompt per turn, each prompt all that was said before."""

import importlib
import json
import re
import shutil
from dataclasses import replace

import jax
import pytest
from tiny import CONFIG, WORDS, write_folder

from rdro_jax import cli
from rdro_jax.generate import Sampling, generate
from rdro_jax.generate.chat import answer, converse, load_assistant
from rdro_jax.generate.load import load_spread
from rdro_jax.models import init_params, load_model, save_model

LINES = [" ".join(WORDS[4:6]), WORDS[7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("chat")) / "model"


@pytest.fixture(scope="module")
def assistant(folder):
    found = load_assistant(folder)
    # A wide spread, so that an answer depends on what was said before.
    return found._replace(params=jax.tree.map(lambda leaf: leaf * 8, found.params))


def test_each_turn_sees_what_was_said(assistant):
    sampling, said = Sampling(5, temperature=2.0), []
    converse(assistant, iter([*LINES, "/new", LINES[1]]), said.append, sampling)
    [first] = answer(assistant, [LINES[0]], sampling)
    told = [
        {"role": "user", "content": LINES[0]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": LINES[1]},
    ]
    [second] = answer(assistant, [told], sampling, seed=1)
    [alone] = answer(assistant, [LINES[1]], sampling, seed=3)
    assert said == [first, second, alone]
    assert second != answer(assistant, [LINES[1]], sampling, seed=1)[0]


def test_many_prompts_are_answered_some_at_a_time(assistant, monkeypatch):
    module, rows = importlib.import_module("rdro_jax.generate.chat"), []
    inner = module.sample
    monkeypatch.setattr(module, "ROWS", 4)
    monkeypatch.setattr(
        module, "sample", lambda *args, **more: rows.append(len(args[2]) * args[3].n) or inner(*args, **more)
    )
    told = answer(assistant, LINES[:1] * 10, Sampling(6, temperature=2.0))
    assert rows == [4, 4, 2]
    assert len(set(told)) == 10, "no two parts draw the same"
    assert len(answer(assistant, LINES, Sampling(1, temperature=2.0, n=5))) == 10
    assert rows[3:] == [5, 5]


def wide(params):
    """So that greedy answers depend on the prompt and change from token to token."""
    return jax.tree.map(lambda leaf: leaf * 8, params)


def share(params):
    """Of the parameters' bytes, what one device holds; the numbers are those of the first one."""
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    return held / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("d_model", "shards"), [(32, 8), (36, 4), (35, 1)])
def test_all_devices_share_the_parameters_as_far_as_sizes_divide(d_model, shards, tmp_path):
    config = replace(CONFIG, d_model=d_model)
    save_model(wide(init_params(config, jax.random.key(1))), config, tmp_path)
    params, model, mesh = load_spread(tmp_path)
    assert (mesh.size, mesh.shape["fsdp"]) == (8, shards)
    assert share(params) == pytest.approx(1 / shards, abs=0.02), "but for norms and biases"
    whole, _ = load_model(tmp_path)
    prompts = [[5, 6, 7], [9]]
    how = {"max_new_tokens": 6}
    assert generate(params, model, prompts, **how) == generate(whole, model, prompts, **how)


COMMANDS = {
    "generate": ["--prompts", "asked.jsonl"],
    "eval alpaca": ["--prompts", "asked.jsonl", "--temperature", "0", "--out", "out.jsonl"],
    "eval mt-bench": ["--questions", "questions.jsonl", "--out", "out.jsonl"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_eight_devices_answer_as_one_does(command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "model")
    params, config = load_model(folder)
    save_model(wide(params), config, "model")
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in LINES))
    question = {"question_id": 1, "category": "math", "turns": LINES}  # whose temperature is 0
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    module, shares, told = importlib.import_module("rdro_jax.generate.chat"), [], []
    inner = module.load_spread
    monkeypatch.setattr(module, "load_spread", lambda where: shares.append(share(inner(where)[0])) or inner(where))
    for devices in (jax.devices(), jax.devices()[:1]):
        monkeypatch.setattr(jax, "devices", lambda *_, devices=devices: devices)
        assert cli.main([*command.split(), "model", *COMMANDS[command], "--max-new-tokens", "6"]) == 0
        shown = capsys.readouterr().out
        written = (tmp_path / "out.jsonl").read_text() if "eval" in command else shown
        told.append([json.loads(row) | {"tstamp": 0} for row in written.splitlines()])
    assert shares == [pytest.approx(1 / 8, abs=0.02), 1]
    assert told[0] == told[1]
    assert len(re.findall(r"\b[a-z]\b", str(told[0]))) > len(" ".join(LINES).split()), "answers worth comparing"


def test_several_answers_per_prompt_are_rows_of_their_own(folder, capsys):
    words = ["generate", str(folder), "--prompt", LINES[0], "--prompt", LINES[1], "--max-new-tokens", "4"]
    assert cli.main([*words, "--temperature", "2", "--n", "3"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == [LINES[0]] * 3 + [LINES[1]] * 3
    assert len({row["completion"] for row in rows}) > 3


def test_a_stop_text_ends_an_answer(folder, capsys):
    words = ["generate", str(folder), "--prompt", LINES[0], "--max-new-tokens", "6"]
    assert cli.main(words) == 0
    whole = capsys.readouterr().out.split()
    assert cli.main([*words, "--stop", whole[1]]) == 0
    assert capsys.readouterr().out.split() == whole[: whole.index(whole[1]) + 1]


def test_options_out_of_range_are_refused_before_the_model_is_read(capsys):
    assert cli.main(["generate", "nowhere", "--prompt", "a", "--top-p", "0"]) == 2
    assert capsys.readouterr().err == "rdro: error: generate: top_p is 0.0; wanted above 0 and at most 1\n"
