"""Completions of a run, side by side, their tokens shaded by log-ratio."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rdro_jax.report.runs import Run

MOST_SAMPLES = 50
STEPS = (0.1, 0.3, 1.0, 3.0)
"""|log-ratio| of a token, in nats, above which its shade is one darker."""


class Piece(NamedTuple):
    """Some text of a completion."""

    text: str
    shade: str
    """CSS class: `u1` to `u4` likelier than under the reference, `d1` to `d4` less so, empty without a log-ratio."""
    log_ratio: float | None
    """Nats."""


class Cell(NamedTuple):
    """One completion."""

    title: str
    pieces: tuple[Piece, ...]


class Row(NamedTuple):
    """What is shown side by side."""

    prompt: str
    cells: tuple[Cell, ...]


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Samples of the runs: those of several runs that answer one prompt, in the same line of their files, together."""
    rows = []
    for index in range(min(MOST_SAMPLES, max((len(run.samples) for run in runs), default=0))):
        by_prompt: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
        for run, line in ((run, run.samples[index]) for run in runs if index < len(run.samples)):
            by_prompt.setdefault(_spell(line.get("prompt") or ""), []).append((run, line))
        rows += [_row(prompt, members, named=len(runs) > 1) for prompt, members in by_prompt.items()]
    return rows


def _row(prompt: str, members: Sequence[tuple[Run, Mapping[str, Any]]], *, named: bool) -> Row:
    cells = tuple(
        Cell(f"{run.name}: {title}" if named else title, pieces)
        for run, line in members
        for title, pieces in _cells(line)
    )
    return Row(prompt, cells)


def _cells(line: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    label = ", desirable" if line.get("label") is True else ", undesirable" if line.get("label") is False else ""
    if isinstance(line.get("tokens"), list):
        yield (
            f"completion{label}{_figure(line, 'log_ratio', 'log-ratio')}",
            tuple(_piece(token) for token in line["tokens"]),
        )
        return
    for key in ("before", "after", "completion"):
        if isinstance(line.get(key), str):
            yield f"{key}{label}{_figure(line, f'score_{key}', 'score')}", (Piece(line[key], "", None),)


def _figure(line: Mapping[str, Any], key: str, name: str) -> str:
    value = line.get(key)
    return f", {name} {value:+.3f}" if isinstance(value, int | float) else ""


def _piece(token: Any) -> Piece:
    """A token given as [text, log-ratio]."""
    text, log_ratio = token if isinstance(token, list) and len(token) == 2 else (token, None)
    if not isinstance(log_ratio, int | float):
        return Piece(str(text), "", None)
    depth = sum(abs(log_ratio) > step for step in STEPS)
    return Piece(str(text), f"{'u' if log_ratio > 0 else 'd'}{depth}" if depth else "", float(log_ratio))


def _spell(prompt: Any) -> str:
    """A prompt as text: a list of messages one below the other."""
    if isinstance(prompt, list):
        turns = (message for message in prompt if isinstance(message, Mapping))
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns)
    return str(prompt)
