"""A file of rows -> examples as flat arrays, and a report of what became of every row."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from rdro_jax.data.chat import Tokenizer, prompt_messages, read_template
from rdro_jax.data.config import DataConfig
from rdro_jax.data.formats import COLUMNS, Format, detect_format, read_records
from rdro_jax.data.records import BadRow, FaultLog, Message, Record
from rdro_jax.data.render import TOO_LONG, Rendered, render_rows
from rdro_jax.data.report import DataReport, Layout, class_report
from rdro_jax.data.sources import parse_row, read_lines
from rdro_jax.errors import RecordError

ROWS_AT_ONCE = 2048
"""Rows rendered and tokenised together: enough to keep the tokenizer's threads busy, little memory."""


class Examples(NamedTuple):
    """Examples of one file, in its order: example `i` is `tokens[offsets[i] : offsets[i + 1]]`.

    Of paired rows, pair `i` is the examples `2i` (chosen, desirable) and `2i + 1` (rejected, not desirable).
    """

    tokens: Int32[np.ndarray, "tokens"]
    offsets: Int64[np.ndarray, "examples_plus_one"]
    prompt_lengths: Int32[np.ndarray, "examples"]
    """Tokens of each example before its completion; at least 1."""
    desirable: Bool[np.ndarray, "examples"]
    weight: Float32[np.ndarray, "examples"]
    hashes: UInt64[np.ndarray, "examples 2"]
    """128-bit hash (high, low) of each example's tokens and prompt length."""
    truncated: Bool[np.ndarray, "examples"]
    """True where something was cut."""
    report: DataReport
    paired: bool = False
    """True where the halves of a pair stay together in adjacent slots, as losses over pairs want them."""
    split_pairs: bool = False
    """True where the halves of a pair are two examples like any others, which the loader keeps apart."""
    prompt_hashes: UInt64[np.ndarray, "examples"] | None = None
    """Hash of each example's prompt as the row has it, before any cut; None where examples were not read from rows."""
    prompt_alpha: Float32[np.ndarray, "examples"] | None = None
    """The rows' `alpha` column, NaN where a row has none; None where no row has one."""

    @property
    def lengths(self) -> Int64[np.ndarray, "examples"]:
        """Tokens of each example."""
        return np.diff(self.offsets)


class Outcome(NamedTuple):
    """What became of one row."""

    line: int
    form: Format
    """What the rows of the file are."""
    columns: frozenset[str]
    """Names of the row's fields; empty where it could not be parsed."""
    records: tuple[Record, ...]
    """One of an unpaired row, chosen and rejected of a paired one; none where the row did not become any."""
    result: tuple[Rendered, ...] | BadRow


@dataclass
class Tally:
    """What was read of one file so far."""

    log: FaultLog
    rows: int = 0
    form: Format = "unpaired"
    columns: set[str] = field(default_factory=set)
    too_long: Counter[bool] = field(default_factory=Counter)
    """Examples of each class whose row is too long."""
    kept: list[tuple[Record, Rendered]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Counts one row, and keeps its examples if it is sound."""
        self.rows += 1
        self.form = outcome.form
        self.columns |= outcome.columns
        if not isinstance(outcome.result, BadRow):
            self.kept += zip(outcome.records, outcome.result, strict=True)
            return
        self.log.add(outcome.line, outcome.result)
        if outcome.result.reason == TOO_LONG:
            self.too_long.update(record.desirable for record in outcome.records)


def load_examples(
    path: str, tokenizer: Tokenizer, config: DataConfig, *, require_label: bool = True, layout: Layout = "unpaired"
) -> Examples:
    """The examples of a JSONL file, rendered and tokenised; `report` says what became of every row.

    The columns of the rows tell whether they are unpaired or paired. `layout` is what the loss wants: "paired" keeps
    pairs together, and needs them; "unpaired" makes two examples of a pair, the chosen one desirable.
    `require_label=False` lets rows stand without a label (they count as desirable), and lets one class stand alone.

    Raises: RecordError for an unreadable file, for bad rows (all of them listed or counted), for a file that leaves
    no example, for labels that are all the same, and for unpaired rows where pairs are wanted; WeightError for a chat
    template that cannot be used.
    """
    tally = Tally(FaultLog(path))
    for outcome in read_outcomes(path, tokenizer, config, require_label=require_label, layout=layout):
        tally.add(outcome)
    _judge(tally.log, tally.rows, config)
    examples = _gather(tally, path, layout)
    if require_label and examples.report.alpha in (0.0, 1.0):
        label = "true" if examples.report.alpha else "false"
        raise RecordError(f"{path}: label: {label} in all {len(tally.kept)} rows; rows of both classes are wanted")
    return examples


def read_outcomes(
    path: str, tokenizer: Tokenizer, config: DataConfig, *, require_label: bool = True, layout: Layout = "unpaired"
) -> Iterator[Outcome]:
    """What becomes of each row of a JSONL file, in order: none is passed over.

    Raises: RecordError for a file that cannot be read or holds no pairs where they are wanted, WeightError for a chat
    template that cannot be used.
    """
    template = read_template(tokenizer, config.chat_template_kwargs)
    lines = read_lines(path)
    form: Format | None = None
    while chunk := list(islice(lines, ROWS_AT_ONCE)):
        rows = [_parse(raw) for _, raw in chunk]
        form = form or detect_format([row for row in rows if not isinstance(row, BadRow)])
        _check_layout(path, form, layout)
        parsed = [
            _records(row, line, form or layout, require_label) for (line, _), row in zip(chunk, rows, strict=True)
        ]
        sound = [records for records in parsed if not isinstance(records, BadRow)]
        rendered = iter(render_rows(sound, tokenizer, template, config, together=layout == "paired"))
        for (line, _), row, records in zip(chunk, rows, parsed, strict=True):
            columns = frozenset() if isinstance(row, BadRow) else frozenset(row)
            if isinstance(records, BadRow):
                yield Outcome(line, form or layout, columns, (), records)
            else:
                yield Outcome(line, form or layout, columns, records, next(rendered))


def _check_layout(path: str, form: Format | None, layout: Layout) -> None:
    if form == "unpaired" and layout == "paired":
        raise RecordError(
            f"{path}: the rows are unpaired (completion, label), but the loss compares pairs; wanted rows of prompt, "
            "chosen, rejected, or a loss over unpaired rows (loss.name=rdro, ddro, kto, bco)"
        )


def _parse(raw: bytes) -> dict[str, object] | BadRow:
    """The JSON object in a line, or what is wrong with it."""
    try:
        return parse_row(raw)
    except BadRow as fault:
        return fault


def _records(
    row: dict[str, object] | BadRow, line: int, form: Format, require_label: bool
) -> tuple[Record, ...] | BadRow:
    """The records of a row, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row
    try:
        return read_records(row, line, form, require_label=require_label)
    except BadRow as fault:
        return fault


def _judge(log: FaultLog, rows: int, config: DataConfig) -> None:
    """Raises RecordError where the configuration does not put up with the bad rows, or none is left.

    Rows that `truncation: drop` leaves out on purpose are not bad.
    """
    bad = log.causes.total() - (log.causes[f"row: {TOO_LONG}"] if config.truncation == "drop" else 0)
    if bad and config.on_bad_row == "error":
        log.refuse(rows, "mend them, or leave them out with data.on_bad_row=skip")
    if bad > config.max_bad_fraction * rows:
        log.refuse(rows, f"more than data.max_bad_fraction={config.max_bad_fraction:g} allows")
    if log.causes.total() == rows:
        log.refuse(rows, "no row is left to train on")


def _gather(tally: Tally, path: str, layout: Layout) -> Examples:
    """The arrays of what was kept, and the report."""
    records, items = zip(*tally.kept, strict=True)
    lengths = np.array([len(item.tokens) for item in items], np.int64)
    prompts = np.array([item.prompt_length for item in items], np.int32)
    desirable = np.array([record.desirable for record in records], bool)
    truncated = np.array([item.truncated for item in items], bool)
    report = DataReport(
        path=path,
        rows=tally.rows,
        kept=len(items),
        dropped=dict(tally.log.causes.most_common()),
        desirable=class_report(desirable, lengths, prompts, truncated, tally.too_long[True]),
        undesirable=class_report(~desirable, lengths, prompts, truncated, tally.too_long[False]),
        alpha=float(desirable.mean()),
        tokens=int(lengths.sum()),
        unterminated=sum(not item.ends_with_stop for item in items),
        ignored_columns=tuple(sorted(tally.columns - set(COLUMNS[tally.form]))),
        format=tally.form,
        layout=layout,
    )
    return Examples(
        tokens=np.concatenate([item.tokens for item in items]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=prompts,
        desirable=desirable,
        weight=np.array([record.weight for record in records], np.float32),
        hashes=np.array([example_hash(item.tokens, item.prompt_length) for item in items], np.uint64),
        truncated=truncated,
        report=report,
        paired=layout == "paired",
        split_pairs=tally.form == "paired" and layout == "unpaired",
        prompt_hashes=np.array([prompt_hash(record.prompt) for record in records], np.uint64),
        prompt_alpha=_alpha_column(records),
    )


def _alpha_column(records: tuple[Record, ...]) -> Float32[np.ndarray, "examples"] | None:
    """The `alpha` of each record, NaN where it has none; None where none has."""
    values = [np.nan if record.alpha is None else record.alpha for record in records]
    return None if np.isnan(values).all() else np.array(values, np.float32)


def example_hash(tokens: Int32[np.ndarray, "tokens"], prompt_length: int) -> tuple[int, int]:
    """128-bit hash (high, low) of what a completion's log-probability depends on: its tokens and where it begins."""
    whole = np.append(tokens, np.int32(prompt_length)).astype("<i4")
    value = xxhash.xxh3_128_intdigest(whole.tobytes())
    return value >> 64, value & (2**64 - 1)


def prompt_hash(prompt: str | list[Message]) -> int:
    """64-bit hash of the conversation a prompt stands for; text and the one user message it stands for are equal."""
    return xxhash.xxh3_64_intdigest(json.dumps(prompt_messages(prompt), sort_keys=True).encode())
