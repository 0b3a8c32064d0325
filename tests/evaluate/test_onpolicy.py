"""KL(policy || reference) on sampled completions against every completion there is, enumerated in float64."""

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy.special import log_softmax
from tiny import CONFIG, write_folder

from rdro_jax.cli import main
from rdro_jax.cli.runs import _print_figures
from rdro_jax.data import DataConfig, load_examples, load_tokenizer
from rdro_jax.evaluate.likelihood import load_scorer
from rdro_jax.evaluate.onpolicy import Drawn, distinct_prompts, draw_completions, kl_figures, score_completions
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


def test_sampled_divergences_are_those_of_the_enumeration(tmp_path):
    policy, reference = (
        jax.tree.map(lambda leaf: leaf * 2.2, init_params(SMALL, jax.random.key(seed))) for seed in (0, 1)
    )
    save_model(policy, SMALL, tmp_path / "policy")
    save_model(reference, SMALL, tmp_path / "reference")
    p, q = exact_logps(policy), exact_logps(reference)
    assert np.exp(p).sum() == pytest.approx(1, abs=1e-9)
    wanted = (np.exp(p) * (p - q)).sum()
    lengths = np.array([len(text) for text in enumerate_completions()])
    per_token = wanted / (np.exp(p) * lengths).sum()
    assert 0.3 < wanted < 3
    scorer = load_scorer(tmp_path / "policy")
    drawn = draw_completions(scorer, [PROMPT], completions=1500, max_new_tokens=LONGEST)
    known = {tuple(text): (of_p, of_q) for text, of_p, of_q in zip(enumerate_completions(), p, q, strict=True)}
    scores = [score_completions(load_scorer(tmp_path / name), drawn) for name in ("policy", "reference")]
    exact = np.array([known[tuple(text)] for _, text in drawn]).T
    np.testing.assert_allclose(scores, exact, atol=1e-4)
    sizes = np.array([len(text) for _, text in drawn])
    figures, intervals = kl_figures(Drawn(scores[0] - scores[1], sizes, np.zeros(1500, int)))
    error = np.sqrt((np.exp(p) * (p - q - wanted) ** 2).sum() / 1500)
    assert abs(figures["on_policy/kl"] - wanted) < 3 * error
    error_per_token = np.sqrt((np.exp(p) * (p - q - per_token * lengths) ** 2).sum() / 1500) / sizes.mean()
    assert abs(figures["on_policy/kl_per_token"] - per_token) < 3 * error_per_token
    low, high = intervals["on_policy/kl"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert low < wanted < high


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
    for name, (low, high) in kl_figures(once)[1].items():
        assert kl_figures(often)[1][name] == pytest.approx((low, high))
    assert kl_figures(once)[0] == pytest.approx({"on_policy/kl": s.mean(), "on_policy/kl_per_token": s.mean() / 3,
                                                 "on_policy/lengths": 3})  # fmt: skip


def test_the_command_samples_from_the_policy(tmp_path, capsys):
    folder = write_folder(tmp_path)
    asked = ["--reference", str(folder / "model"), "--data", str(folder / "eval.jsonl"), "--max-length", "32"]
    assert main(["eval", str(folder / "model"), *asked, "--completions", "2", "--max-new-tokens", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["on_policy/kl"], told["intervals"]["on_policy/kl_per_token"]) == (0, [0, 0])
    assert 1 <= told["on_policy/lengths"] <= 4


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
