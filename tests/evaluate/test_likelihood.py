"""Continuations scored in sharded batches against one forward pass of each request by itself."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, write_folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from rdro_jax.errors import ConfigError
from rdro_jax.evaluate import harness
from rdro_jax.evaluate.likelihood import load_scorer, score_continuations
from rdro_jax.evaluate.samples import _spell, token_rows
from rdro_jax.models import forward, init_params, load_model, logits, save_model


def test_each_continuation_is_scored_as_by_itself(tmp_path):
    params = init_params(CONFIG, jax.random.key(1))
    save_model(params, CONFIG, tmp_path)
    random = np.random.default_rng(0)
    ids = lambda count: random.integers(1, CONFIG.vocab_size, count).tolist()  # noqa: E731
    requests = [(ids(5), ids(3)), (ids(1), ids(40)), (ids(60), ids(2)), (ids(7), ids(1))]
    of = jax.jit(lambda tokens: jax.nn.log_softmax(logits(params, CONFIG, forward(params, CONFIG, tokens[None])))[0])
    table = lambda tokens: np.asarray(of(jnp.asarray(tokens + [0] * (64 - len(tokens)))))  # noqa: E731
    likeliest = [int(table([9, 8])[1].argmax())]
    requests.append(([9, 8], likeliest))
    found = score_continuations(load_scorer(tmp_path), requests, max_length=32)
    for (context, continuation), got in zip(requests, found, strict=True):
        tokens = [*context, *continuation][-33:]  # the end of what is too long, and one token more to predict
        places = range(max(1, len(tokens) - len(continuation)), len(tokens))
        scores = table(tokens)
        assert got.logp == pytest.approx(sum(scores[at - 1, tokens[at]] for at in places), abs=1e-4)
        assert got.greedy == all(scores[at - 1].argmax() == tokens[at] for at in places)
    assert found[-1].greedy


def test_rows_by_token_add_up_to_the_log_ratio(tmp_path):
    folder = write_folder(tmp_path)
    other = jax.tree.map(lambda leaf: leaf * 1.1, load_model(folder / "model")[0])
    shutil.copytree(folder / "model", folder / "other")
    save_model(other, CONFIG, folder / "other")
    at = {"reference": folder / "other", "data": folder / "eval.jsonl", "max_length": 32}
    rows = token_rows(folder / "model", **at, count=8)
    wanted = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()[:8]]
    assert [row["label"] for row in rows] == [line["label"] for line in wanted]
    for row, line in zip(rows, wanted, strict=True):
        assert (
            "".join(text for text, _ in row["tokens"]).replace(" ", "").startswith(line["completion"].replace(" ", ""))
        )
        assert sum(s for _, s in row["tokens"]) == pytest.approx(row["log_ratio"], abs=1e-4)
    assert max(abs(row["log_ratio"]) for row in rows) > 1e-3
    same = token_rows(folder / "model", **at | {"reference": folder / "model"}, count=3)
    assert all(s == 0 for row in same for _, s in row["tokens"])


def test_a_letter_of_several_tokens_is_one_piece():
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens = tokenizer.encode("aé€").ids
    assert _spell(tokenizer, tokens, [1, 2, 3, 4, 5, 6]) == [["a", 1], ["é", 5], ["€", 15]]
    assert _spell(tokenizer, tokens[:-1], [1, 2, 3, 4, 5])[-1] == ["\ufffd", 9], "cut in the middle"


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="got 2 processes; samples and completions want a single one"):
        load_scorer("anywhere")


def test_a_missing_harness_is_named(monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rdro_jax\[lm-eval\]'"):
        harness.make_harness_model("anywhere")
