"""KL both ways on sampled completions against every completion there is, enumerated in float64."""

import gc
import itertools
import json
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from tiny import CONFIG, write_folder

from rdro_jax.cli import main
from rdro_jax.cli.runs import _print_figures
from rdro_jax.data import DataConfig, load_examples, load_tokenizer
from rdro_jax.errors import ConfigError
from rdro_jax.evaluate import heldout
from rdro_jax.evaluate.likelihood import load_scorer
from rdro_jax.evaluate.onpolicy import (
    Drawn,
    distinct_prompts,
    draw_completions,
    kl_both_ways,
    kl_figures,
    score_completions,
)
from rdro_jax.models import forward, init_params, logits, save_model

STOP, LONGEST, PROMPT = 0, 3, [1, 2]
SMALL = replace(CONFIG, vocab_size=5, eos_token_ids=(STOP,))


def enumerate_completions():
    """Every completion of at most LONGEST tokens: it ends with STOP, or is cut."""
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(SMALL.vocab_size), repeat=length):
            if STOP not in tokens[:-1] and (tokens[-1] == STOP or length == LONGEST):
                yield list(tokens)


def exact_logps(params):
    """Nats of each completion in float64, with the parameters as they are."""
    with jax.enable_x64(True):
        config, wide = (
            replace(SMALL, compute_dtype="float64"),
            jax.tree.map(lambda leaf: leaf.astype("float64"), params),
        )
        texts = list(enumerate_completions())
        rows = np.array([PROMPT + text + [0] * (LONGEST - len(text)) for text in texts])
        table = log_softmax(np.asarray(logits(wide, config, forward(wide, config, rows)), np.float64), axis=-1)
    at = len(PROMPT) - 1
    return np.array(
        [sum(row[at + i, token] for i, token in enumerate(text)) for row, text in zip(table, texts, strict=True)]
    )


ONE_PROMPT = SimpleNamespace(
    prompt_hashes=np.array([7, 7], np.uint64),
    prompt_lengths=np.array([2, 2]),
    offsets=np.array([0, 3, 6]),
    tokens=np.array([*PROMPT, 3, *PROMPT, 4]),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of two models, and what each says of every completion; the reference stops by another token."""
    home, exact = tmp_path_factory.mktemp("pair"), {}
    for seed, name in enumerate(("policy", "reference")):
        params = jax.tree.map(lambda leaf: leaf * 2.2, init_params(SMALL, jax.random.key(seed)))
        save_model(params, replace(SMALL, eos_token_ids=(STOP if name == "policy" else 3,)), home / name)
        exact[name] = exact_logps(params)
        assert np.exp(exact[name]).sum() == pytest.approx(1, abs=1e-9)
    return home, exact


@pytest.mark.parametrize("name", ["policy", "reference"])
def test_completions_are_scored_as_by_the_enumeration(name, pair):
    home, exact = pair
    drawn = draw_completions(
        load_scorer(home / name), [PROMPT], completions=300, max_new_tokens=LONGEST, stop_ids=(STOP,)
    )
    known = {tuple(text): at for at, text in enumerate(enumerate_completions())}
    at = [known[tuple(text)] for _, text in drawn]
    for other in exact:
        np.testing.assert_allclose(score_completions(load_scorer(home / other), drawn), exact[other][at], atol=1e-4)


def test_sampled_divergences_are_those_of_the_enumeration(pair):
    """Of each direction, with one model in memory at a time."""
    home, exact = pair
    alive = []

    def load(name):
        gc.collect()
        assert not any(leaf() is not None for leaf in alive), "two models in memory"
        scorer = load_scorer(home / name)
        alive.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(scorer.params))
        return scorer

    how = {"completions": 1500, "max_new_tokens": LONGEST}
    figures, intervals = kl_both_ways(partial(load, "policy"), partial(load, "reference"), ONE_PROMPT, **how)
    assert set(intervals) == set(figures)
    lengths = np.array([len(text) for text in enumerate_completions()])
    wanted = {}
    for where, writer, other in (("on_policy", "policy", "reference"), ("on_reference", "reference", "policy")):
        p, s = np.exp(exact[writer]), exact[writer] - exact[other]
        kl, length = (p * s).sum(), (p * lengths).sum()
        assert 0.3 < kl < 3
        error = np.sqrt((p * (s - kl) ** 2).sum() / 1500)
        assert abs(figures[f"{where}/kl"] - kl) < 3 * error
        assert abs(figures[f"{where}/lengths"] - length) < 3 * np.sqrt((p * (lengths - length) ** 2).sum() / 1500)
        error_per_token = np.sqrt((p * (s - kl / length * lengths) ** 2).sum() / 1500) / length
        assert abs(figures[f"{where}/kl_per_token"] - kl / length) < 3 * error_per_token
        low, high = intervals[f"{where}/kl"]
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
        assert low < kl < high
        wanted[where] = kl, error
    gap, errors = (abs(a - b) for a, b in zip(*wanted.values(), strict=True)), [e for _, e in wanted.values()]
    assert next(gap) > 6 * max(errors), "directions that could be told apart"


def test_models_without_a_common_vocabulary_are_refused(pair, tmp_path):
    home, _ = pair
    few = replace(SMALL, vocab_size=4)
    save_model(init_params(few, jax.random.key(0)), few, tmp_path)
    how = {"completions": 50, "max_new_tokens": LONGEST}
    with pytest.raises(ConfigError, match="--completions: one model wrote token 4, the other has 4 tokens; wanted"):
        kl_both_ways(partial(load_scorer, home / "policy"), partial(load_scorer, tmp_path), ONE_PROMPT, **how)


def test_the_policy_of_the_held_out_rows_is_let_go_before_others_are_loaded(tmp_path, monkeypatch):
    folder, alive = write_folder(tmp_path), []
    inner = heldout._params

    def loaded(*which):
        params = inner(*which)
        alive.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(params))
        return params

    def others(*_, **__):
        gc.collect()
        assert alive
        assert not any(leaf() is not None for leaf in alive)
        return {}, {}

    monkeypatch.setattr(heldout, "_params", loaded)
    monkeypatch.setattr(heldout, "kl_both_ways", others)
    named = {"reference": folder / "model", "data": folder / "eval.jsonl", "max_length": 32}
    heldout.evaluate(folder / "model", **named, completions=1)


def test_each_prompt_is_asked_once_up_to_the_answer(tmp_path):
    folder = write_folder(tmp_path)
    rows = [{"prompt": "a b", "completion": text, "label": text == "c"} for text in ("c", "d e")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"prompt": "f"}]))
    tokenizer = load_tokenizer(folder / "model")
    prompts = distinct_prompts(load_examples(str(path), tokenizer, DataConfig(train=str(path), max_length=32)))
    assert sorted(map(tokenizer.decode, prompts)) == ["<user> a b <assistant>", "<user> f <assistant>"]


def test_intervals_keep_completions_of_a_prompt_together():
    """Completions of one prompt that are all alike tell no more than one of them."""
    s = np.random.default_rng(0).normal(size=20)
    once = Drawn(s, np.full(20, 3), np.arange(20))
    often = Drawn(np.repeat(s, 5), np.full(100, 3), np.repeat(np.arange(20), 5))
    for name, (low, high) in kl_figures(once, "on_policy")[1].items():
        assert kl_figures(often, "on_policy")[1][name] == pytest.approx((low, high))
    assert kl_figures(once, "on_policy")[0] == pytest.approx(
        {"on_policy/kl": s.mean(), "on_policy/kl_per_token": s.mean() / 3, "on_policy/lengths": 3}
    )


def test_the_command_samples_from_policy_and_reference(tmp_path, capsys):
    folder = write_folder(tmp_path)
    asked = ["--reference", str(folder / "model"), "--data", str(folder / "eval.jsonl"), "--max-length", "32"]
    asked += ["--completions", "2", "--max-new-tokens", "4"]
    assert main(["eval", str(folder / "model"), *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    for where in ("on_policy", "on_reference"):
        assert (told[f"{where}/kl"], told["intervals"][f"{where}/kl_per_token"]) == (0, [0, 0])
        assert 1 <= told[f"{where}/lengths"] <= 4


def test_one_class_is_measured_against_a_named_alpha(tmp_path, capsys):
    folder = write_folder(tmp_path)
    (tmp_path / "liked.jsonl").write_text('{"prompt": "a b", "completion": "c", "label": true}\n' * 3)
    asked = [
        "eval",
        str(folder / "model"),
        "--reference",
        str(folder / "model"),
        "--data",
        str(tmp_path / "liked.jsonl"),
    ]
    assert main([*asked, "--max-length", "32"]) == 3
    assert "label: true in all 3 rows" in capsys.readouterr().err
    assert main([*asked, "--max-length", "32", "--alpha", "0.4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["counts/chosen"], told["rewards/auc"], told["divergence/kl"]) == (3, None, 0)


def test_a_terminal_gets_the_figures_as_a_table(capsys, monkeypatch):
    figures = {"rewards/auc": 0.80934, "loss": 1.5, "alpha_hat/value": None, "log_ratio": {"edges": [0.25, 0.75]}}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _print_figures(figures | {"intervals": {"rewards/auc": (0.7, None)}})
    shown = [line.replace("│", "").split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown if line[0] in figures] == [
        ["alpha_hat/value", "-"], ["loss", "1.5"], ["rewards/auc", "0.8093", "0.7", "to", "-"]
    ]  # fmt: skip
