"""Rows as the model will see them: the template's text, which tokens are trained, what was cut, or why a row is bad."""

import html
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from rdro_jax.data.chat import Tokenizer, read_template
from rdro_jax.data.config import DataConfig, sources_of
from rdro_jax.data.reading import Outcome, read_chunks, read_outcomes
from rdro_jax.data.records import BadRow, Record
from rdro_jax.data.render import Rendered
from rdro_jax.data.report import Layout
from rdro_jax.errors import StorageError

UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters, which a terminal would obey."""
TRAINED_STYLE = "bold green"
PAGE_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid #ccc;padding:1em;color:#555}"
    "b{background:#cfc;color:#000;font-weight:normal}.bad{color:#a00}"
)


class PreviewRow(NamedTuple):
    """One example, or one row that is none."""

    title: str
    """Where it stands, its label, its lengths and what was cut of it."""
    pieces: tuple[tuple[str, bool], ...]
    """Its text in the order of its tokens, and of each piece whether it is trained; none of a bad row."""


def preview_rows(
    config: DataConfig, tokenizer: Tokenizer, *, count: int, require_label: bool = True, layout: Layout = "unpaired"
) -> list[PreviewRow]:
    """The first `count` rows of each source of `train`.

    Raises: as `load_examples`, but for bad rows, which are shown as such.
    """
    template = read_template(tokenizer, config.chat_template_kwargs)
    shown: list[PreviewRow] = []
    for source in sources_of(config.train):
        # The whole first chunk is read, because its columns tell what the rows are; only `count` rows are rendered.
        chunk = next(read_chunks([source], config, require_label=require_label, layout=layout, side="all"), None)
        if chunk is not None:
            few = chunk._replace(rows=chunk.rows[:count])
            uncut = few._replace(reading=few.reading._replace(config=_without_limits(few.reading.config)))
            for outcome, whole in zip(
                read_outcomes(few, tokenizer, template), read_outcomes(uncut, tokenizer, template), strict=True
            ):
                shown += _preview(outcome, whole, tokenizer)
    return shown


def _without_limits(config: DataConfig) -> DataConfig:
    return replace(config, max_length=sys.maxsize, max_prompt_length=None, max_completion_length=None)


def _preview(outcome: Outcome, whole: Outcome, tokenizer: Tokenizer) -> Iterator[PreviewRow]:
    """The examples of a row, or its fault; `whole` is what the row becomes where nothing is cut."""
    where = f"{outcome.row.path}:{outcome.row.number}"
    result = outcome.result
    if isinstance(result, BadRow):
        got = f", got {result.got}" if result.got else ""
        yield PreviewRow(f"{where}: bad row: {result.cause}{got}", ())
        return
    assert isinstance(whole.result, tuple), "no row becomes bad by having room"
    for record, rendered, uncut in zip(outcome.records, result or (), whole.result, strict=True):
        yield PreviewRow(f"{where}: {_title(record, rendered, uncut)}", _pieces(rendered, tokenizer))


def _title(record: Record, rendered: Rendered, uncut: Rendered) -> str:
    label = record.column if record.column != "completion" else ("desirable" if record.desirable else "undesirable")
    weight = "" if record.weight == 1 else f", weight {record.weight:g}"
    end = "" if rendered.ends_with_stop else ", without end of turn"
    prompt, completion = rendered.prompt_length, len(rendered.tokens) - rendered.prompt_length
    cut = ""
    if rendered.truncated:
        whole = len(uncut.tokens) - uncut.prompt_length
        cut = f", cut: {uncut.prompt_length - prompt} of the prompt's and {whole - completion} of the completion's"
    return f"{label}{weight}, prompt {prompt} + completion {completion} tokens{cut}{end}"


def _pieces(rendered: Rendered, tokenizer: Tokenizer) -> tuple[tuple[str, bool], ...]:
    """Text of prompt and completion; tokens are decoded together, as a letter may be spread over several."""
    trained = [index >= rendered.prompt_length for index in range(len(rendered.tokens))]
    groups = groupby(zip(rendered.tokens.tolist(), trained, strict=True), key=lambda pair: pair[1])
    return tuple((tokenizer.decode([token for token, _ in group]), label) for label, group in groups)


def print_rows(rows: Sequence[PreviewRow], console: Console | None = None) -> None:
    """The rows on the console: trained text in colour on a terminal, in [[brackets]] elsewhere."""
    console = console or Console(soft_wrap=True)
    for row in rows:
        text = Text(f"--- {row.title}\n", style="" if row.pieces else "red")
        for piece, trained in row.pieces:
            piece = UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", piece)
            marked = f"[[{piece}]]" if trained and not console.is_terminal else piece
            text.append(marked, style=TRAINED_STYLE if trained else "dim")
        console.print(text, highlight=False)


def write_page(rows: Sequence[PreviewRow], path: Path) -> None:
    """Write the rows as one self-contained page without scripts; every text is escaped, for rows are strangers' words.

    Raises: StorageError where it cannot be written.
    """
    parts = [f"<h3{'' if row.pieces else ' class=bad'}>{html.escape(row.title)}</h3>{_page_row(row)}" for row in rows]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>rdro preview</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<style>{PAGE_STYLE}</style><h1>Rows as the model sees them</h1><p>Trained tokens are <b>marked</b>.</p>"
        f"{''.join(parts)}</html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; wanted a file that can be written") from error


def _page_row(row: PreviewRow) -> str:
    text = "".join(f"<b>{html.escape(piece)}</b>" if trained else html.escape(piece) for piece, trained in row.pieces)
    return f"<pre>{text}</pre>" if row.pieces else ""
