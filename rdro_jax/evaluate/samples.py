"""Held-out completions with the log-ratio of each token, for `rdro report` to shade."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rdro_jax.data import DataConfig, load_examples, load_tokenizer
from rdro_jax.evaluate.likelihood import load_scorer, score_tokens


def token_rows(
    model: str | Path, *, reference: str | Path, data: str | Path, max_length: int = 1024, count: int = 50
) -> list[dict[str, Any]]:
    """The first `count` rows of `data`: `prompt`, `label`, `log_ratio`, and `tokens` as [text, log-ratio in nats].

    Policy and reference are loaded one after the other.
    """
    tokenizer = load_tokenizer(model)
    examples = load_examples(str(data), tokenizer, DataConfig(train=str(data), max_length=max_length))
    ids = [
        examples.tokens[slice(*examples.offsets[n : n + 2])].tolist() for n in range(min(count, len(examples.lengths)))
    ]
    requests = [(row[:at], row[at:]) for row, at in zip(ids, examples.prompt_lengths.tolist(), strict=False)]
    policy, base = (score_tokens(load_scorer(folder), requests, max_length=max_length) for folder in (model, reference))
    rows = []
    for number, (context, continuation) in enumerate(requests):
        ratios = policy[number][0] - base[number][0]
        row = {"prompt": tokenizer.decode(context), "label": bool(examples.desirable[number])}
        rows.append(row | {"log_ratio": float(ratios.sum()), "tokens": _spell(tokenizer, continuation, ratios)})
    return rows


def _spell(tokenizer: Any, tokens: Sequence[int], ratios: Iterable[float]) -> list[list[Any]]:
    """[text, log-ratio] of each token, or of the tokens that a letter is spread over together."""
    pieces, held, total = [], [], 0.0
    for token, ratio in zip(tokens, ratios, strict=True):
        held, total = [*held, token], total + float(ratio)
        text = tokenizer.decode(held)
        if not text.endswith("\ufffd"):  # what an unfinished letter is decoded to
            pieces.append([text, total])
            held, total = [], 0.0
    return [*pieces, [tokenizer.decode(held), total]] if held else pieces
