"""Rows -> examples, some rows at a time, and what became of every one of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from rdro_jax.data.chat import Template, Tokenizer, read_template
from rdro_jax.data.columns import canonical_row
from rdro_jax.data.config import DataConfig, Source, sources_of
from rdro_jax.data.examples import Arrays, Examples, example_hash, make_examples, prompt_hash
from rdro_jax.data.formats import COLUMNS, Format, detect_format, read_records
from rdro_jax.data.records import BadRow, Record
from rdro_jax.data.render import LENGTH_REASONS, Rendered, render_rows
from rdro_jax.data.report import Layout, SourceReport, Tally, names_of
from rdro_jax.data.sources import Row, parse_row, read_rows
from rdro_jax.errors import RecordError

ROWS_AT_ONCE = 2048
"""Rows rendered and tokenised together: enough to keep the tokenizer's threads busy, little memory."""

Side = Literal["all", "train", "heldout"]
"""Which prompts are wanted, where `heldout_fraction` of them is held out."""


class Reading(NamedTuple):
    """How the rows of one source are read: the same for all of them."""

    source: Source
    form: Format
    """What the rows are."""
    config: DataConfig
    require_label: bool
    layout: Layout
    side: Side


class Outcome(NamedTuple):
    """What became of one row."""

    row: Row
    columns: frozenset[str]
    """Names of the row's fields; empty where it could not be parsed."""
    records: tuple[Record, ...]
    """One of an unpaired row, chosen and rejected of a paired one; none where the row did not become any."""
    result: tuple[Rendered, ...] | BadRow | None
    """None where the prompt is on the other side of the held-out split."""


class Part(NamedTuple):
    """What some rows in a row became."""

    arrays: Arrays
    tally: Tally


class Chunk(NamedTuple):
    """Some rows in a row, and how to read them."""

    source: int
    """Number of the source."""
    reading: Reading
    rows: list[Row]


def load_examples(
    path: str | Source | tuple[Source, ...],
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    require_label: bool = True,
    layout: Layout = "unpaired",
    side: Side = "all",
) -> Examples:
    """The examples of a file or several sources, rendered and tokenised here and now, in memory.

    The columns of the rows tell whether they are unpaired or paired. `layout` is what the loss wants: "paired" keeps
    pairs together, and needs them; "unpaired" makes two examples of a pair, the chosen one desirable.
    `require_label=False` lets rows stand without a label (they count as desirable), and lets one class stand alone.

    Raises: RecordError for an unreadable file, for bad rows (all of them listed or counted), for sources that leave
    no example, for labels that are all the same, and for unpaired rows where pairs are wanted; WeightError for a chat
    template that cannot be used.
    """
    template = read_template(tokenizer, config.chat_template_kwargs)
    sources = sources_of(path)
    parts: list[Part] = []
    reports = [SourceReport(source.path) for source in sources]
    for chunk in read_chunks(sources, config, require_label=require_label, layout=layout, side=side):
        parts.append(make_part(chunk, tokenizer, template))
        reports[chunk.source] = reports[chunk.source].add(len(chunk.rows), chunk.reading.form)
    tally = Tally()
    for part in parts:
        tally.extend(part.tally)
    check_tally(tally, reports, config)
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return make_examples(arrays, tally, reports, layout, require_label=require_label)


def read_chunks(
    sources: Sequence[Source], config: DataConfig, *, require_label: bool, layout: Layout, side: Side
) -> Iterator[Chunk]:
    """The rows of all sources in order, `ROWS_AT_ONCE` at a time; the first of a source tell what its rows are.

    Raises: RecordError for a file that cannot be read or holds no pairs where they are wanted.
    """
    for number, source in enumerate(sources):
        rows, form = read_rows(source), None
        while chunk := list(islice(rows, ROWS_AT_ONCE)):
            form = form or _detect(chunk, source)
            how = config
            if form == "unpaired" and layout == "paired":
                how = _for_pairing(source.path, config)
            yield Chunk(number, Reading(source, form or layout, how, require_label, layout, side), chunk)


def _detect(rows: Iterable[Row], source: Source) -> Format | None:
    parsed = (_parse(row, source) for row in rows)
    return detect_format([row for row in parsed if not isinstance(row, BadRow)])


def _for_pairing(path: str, config: DataConfig) -> DataConfig:
    """The config under which each half of a pair to be has half a window. Raises: RecordError if none are to be."""
    if not config.pair_by_prompt:
        raise RecordError(
            f"{path}: the rows are unpaired (completion, label), but the loss compares pairs; wanted rows of prompt, "
            "chosen, rejected, or a loss over unpaired rows (loss.name=rdro, ddro, kto, bco), or "
            "data.pair_by_prompt=true to pair the completions of each prompt"
        )
    return replace(config, max_length=config.max_length // 2)


def make_part(chunk: Chunk, tokenizer: Tokenizer, template: Template) -> Part:
    """What becomes of the rows of a chunk, as arrays and numbers."""
    tally, kept = Tally(), []
    for outcome in read_outcomes(chunk, tokenizer, template):
        tally.rows += 1
        tally.columns |= outcome.columns - {*COLUMNS[chunk.reading.form]}
        if outcome.result is None:
            tally.elsewhere += 1
        elif isinstance(outcome.result, BadRow):
            tally.faults.add(f"{outcome.row.path}:{outcome.row.number}", outcome.result)
            if outcome.result.reason in LENGTH_REASONS:
                tally.too_long.update(record.desirable for record in outcome.records)
        else:
            kept += zip(outcome.records, outcome.result, strict=True)
    tally.unterminated = sum(not item.ends_with_stop for _, item in kept)
    return Part(_arrays(kept), tally)


def read_outcomes(chunk: Chunk, tokenizer: Tokenizer, template: Template) -> Iterator[Outcome]:
    """What becomes of each row of a chunk, in order: none is passed over."""
    reading = chunk.reading
    rows = [_parse(row, reading.source) for row in chunk.rows]
    parsed = [_records(row, where.number, reading) for where, row in zip(chunk.rows, rows, strict=True)]
    wanted = [records for records in parsed if isinstance(records, tuple) and _is_wanted(records, reading)]
    together = reading.layout == "paired"
    rendered = iter(render_rows(wanted, tokenizer, template, reading.config, together=together))
    for where, row, records in zip(chunk.rows, rows, parsed, strict=True):
        columns = frozenset() if isinstance(row, BadRow) else frozenset(row)
        if isinstance(records, BadRow):
            yield Outcome(where, columns, (), records)
        else:
            yield Outcome(where, columns, records, next(rendered) if _is_wanted(records, reading) else None)


def _parse(row: Row, source: Source) -> dict[str, object] | BadRow:
    """The row under our names, or what is wrong with it."""
    try:
        return canonical_row(parse_row(row.value), source)
    except BadRow as fault:
        return fault


def _records(row: dict[str, object] | BadRow, number: int, reading: Reading) -> tuple[Record, ...] | BadRow:
    """The records of a row, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row
    try:
        return read_records(row, number, reading.form, require_label=reading.require_label)
    except BadRow as fault:
        return fault


def _is_wanted(records: tuple[Record, ...], reading: Reading) -> bool:
    """True where the prompt is on the wanted side of the held-out split."""
    if reading.side == "all":
        return True
    share = prompt_hash(records[0].prompt, records[0].variables) / 2**64
    return (share < reading.config.heldout_fraction) == (reading.side == "heldout")


def _arrays(kept: Sequence[tuple[Record, Rendered]]) -> Arrays:
    """The arrays of some examples."""
    nothing = np.zeros(0, np.int32)
    hashes = [example_hash(item.tokens, item.prompt_length) for _, item in kept]
    return {
        "tokens": np.concatenate([nothing, *(item.tokens for _, item in kept)]),
        "lengths": np.array([len(item.tokens) for _, item in kept], np.int32),
        "prompt_lengths": np.array([item.prompt_length for _, item in kept], np.int32),
        "desirable": np.array([record.desirable for record, _ in kept], bool),
        "weight": np.array([record.weight for record, _ in kept], np.float32),
        "hashes": np.array(hashes, np.uint64).reshape(-1, 2),
        "truncated": np.array([item.truncated for _, item in kept], bool),
        "prompt_hashes": np.array([prompt_hash(record.prompt, record.variables) for record, _ in kept], np.uint64),
        "alpha": np.array([np.nan if record.alpha is None else record.alpha for record, _ in kept], np.float32),
    }


def check_tally(tally: Tally, sources: Sequence[SourceReport], config: DataConfig) -> None:
    """Raises RecordError where the configuration does not put up with the bad rows, or none is left.

    Rows that `truncation: drop` leaves out on purpose are not bad.
    """
    faults, path = tally.faults, names_of(sources)
    on_purpose = sum(faults.causes[f"row: {reason}"] for reason in LENGTH_REASONS)
    bad = faults.causes.total() - (on_purpose if config.truncation == "drop" else 0)
    if bad and config.on_bad_row == "error":
        faults.refuse(path, tally.rows, "mend them, or leave them out with data.on_bad_row=skip")
    if bad > config.max_bad_fraction * tally.rows:
        faults.refuse(path, tally.rows, f"more than data.max_bad_fraction={config.max_bad_fraction:g} allows")
    if faults.causes.total() + tally.elsewhere == tally.rows:
        side = f" ({tally.elsewhere} are on the other side of data.heldout_fraction)" if tally.elsewhere else ""
        faults.refuse(path, tally.rows, f"no row is left to train on{side}")
