"""A file of rows -> examples as flat arrays, and a report of what became of every row."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from rdro_jax.data.chat import TOO_LONG, Rendered, Tokenizer, read_template, render_records
from rdro_jax.data.config import DataConfig
from rdro_jax.data.formats import UNPAIRED_COLUMNS, unpaired_record
from rdro_jax.data.records import BadRow, FaultLog, Record
from rdro_jax.data.sources import parse_row, read_lines
from rdro_jax.errors import RecordError

ROWS_AT_ONCE = 2048
"""Rows rendered and tokenised together: enough to keep the tokenizer's threads busy, little memory."""


@dataclass(frozen=True)
class ClassReport:
    """What became of one class, desirable or undesirable."""

    kept: int = 0
    """Examples."""
    truncated: int = 0
    """Examples of which something was cut."""
    too_long: int = 0
    """Rows left out or refused because they exceed `max_length`."""
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    completion_tokens: int = 0
    """Tokens of all completions, end of turn included."""
    mean_prompt_length: float = 0.0
    """Tokens."""
    mean_completion_length: float = 0.0
    """Tokens."""


@dataclass(frozen=True)
class DataReport:
    """What became of every row of a file: rows = kept + the sum of `dropped`."""

    path: str
    """The file."""
    rows: int
    """Lines that are not blank."""
    kept: int
    """Examples."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    desirable: ClassReport
    """The preferred examples."""
    undesirable: ClassReport
    """The others."""
    alpha: float
    """Fraction of the examples that is desirable."""
    tokens: int
    """Tokens of all examples."""
    unterminated: int
    """Examples that do not end with an end-of-turn token."""
    ignored_columns: tuple[str, ...]
    """Columns that were not read."""

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


class Examples(NamedTuple):
    """Examples of one file, in its order: example `i` is `tokens[offsets[i] : offsets[i + 1]]`."""

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

    @property
    def lengths(self) -> Int64[np.ndarray, "examples"]:
        """Tokens of each example."""
        return np.diff(self.offsets)


class Outcome(NamedTuple):
    """What became of one row."""

    line: int
    columns: frozenset[str]
    """Names of the row's fields; empty where it could not be parsed."""
    record: Record | None
    """None where the row did not become one."""
    result: Rendered | BadRow


def load_examples(path: str, tokenizer: Tokenizer, config: DataConfig, *, require_label: bool = True) -> Examples:
    """The examples of a JSONL file, rendered and tokenised; `report` says what became of every row.

    `require_label=False` lets rows stand without a label (they count as desirable), and lets one class stand alone.

    Raises: RecordError for an unreadable file, for bad rows (all of them listed or counted), for a file that leaves
    no example, and for labels that are all the same; WeightError for a chat template that cannot be used.
    """
    log, columns, too_long = FaultLog(path), set[str](), Counter[bool]()
    kept: list[tuple[Record, Rendered]] = []
    rows = 0
    for outcome in read_outcomes(path, tokenizer, config, require_label=require_label):
        rows += 1
        columns |= outcome.columns
        if isinstance(outcome.result, Rendered):
            kept.append((outcome.record, outcome.result))  # type: ignore[arg-type]  # rendered, hence parsed
            continue
        log.add(outcome.line, outcome.result)
        if outcome.record and outcome.result.reason == TOO_LONG:
            too_long[outcome.record.desirable] += 1
    _judge(log, rows, config)
    examples = _gather(kept, path, rows, log, too_long, columns)
    if require_label and examples.report.alpha in (0.0, 1.0):
        label = "true" if examples.report.alpha else "false"
        raise RecordError(f"{path}: label: {label} in all {len(kept)} rows; rows of both classes are wanted")
    return examples


def read_outcomes(
    path: str, tokenizer: Tokenizer, config: DataConfig, *, require_label: bool = True
) -> Iterator[Outcome]:
    """What becomes of each row of a JSONL file, in order: none is passed over.

    Raises: RecordError for a file that cannot be read, WeightError for a chat template that cannot be used.
    """
    template = read_template(tokenizer, config.chat_template_kwargs)
    lines = read_lines(path)
    while chunk := list(islice(lines, ROWS_AT_ONCE)):
        parsed = [_parse(line, raw, require_label) for line, raw in chunk]
        rendered = iter(render_records([record for _, record, _ in parsed if record], tokenizer, template, config))
        for (line, _), (columns, record, fault) in zip(chunk, parsed, strict=True):
            yield Outcome(line, columns, record, fault or next(rendered))


def _parse(line: int, raw: bytes, require_label: bool) -> tuple[frozenset[str], Record | None, BadRow | None]:
    """Columns of a line, and its record or what is wrong with it."""
    columns: frozenset[str] = frozenset()
    try:
        row = parse_row(raw)
        columns = frozenset(row)
        return columns, unpaired_record(row, line, require_label=require_label), None
    except BadRow as fault:
        return columns, None, fault


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


def _gather(
    kept: list[tuple[Record, Rendered]],
    path: str,
    rows: int,
    log: FaultLog,
    too_long: Counter[bool],
    columns: set[str],
) -> Examples:
    """The arrays of what was kept, and the report."""
    lengths = np.array([len(item.tokens) for _, item in kept], np.int64)
    prompts = np.array([item.prompt_length for _, item in kept], np.int32)
    desirable = np.array([record.desirable for record, _ in kept], bool)
    truncated = np.array([item.truncated for _, item in kept], bool)
    report = DataReport(
        path=path,
        rows=rows,
        kept=len(kept),
        dropped=dict(log.causes.most_common()),
        desirable=_class_report(desirable, lengths, prompts, truncated, too_long[True]),
        undesirable=_class_report(~desirable, lengths, prompts, truncated, too_long[False]),
        alpha=float(desirable.mean()),
        tokens=int(lengths.sum()),
        unterminated=sum(not item.ends_with_stop for _, item in kept),
        ignored_columns=tuple(sorted(columns - set(UNPAIRED_COLUMNS))),
    )
    return Examples(
        tokens=np.concatenate([item.tokens for _, item in kept]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        prompt_lengths=prompts,
        desirable=desirable,
        weight=np.array([record.weight for record, _ in kept], np.float32),
        hashes=np.array([example_hash(item.tokens, item.prompt_length) for _, item in kept], np.uint64),
        truncated=truncated,
        report=report,
    )


def _class_report(
    chosen: Bool[np.ndarray, "examples"],
    lengths: Int64[np.ndarray, "examples"],
    prompts: Int32[np.ndarray, "examples"],
    truncated: Bool[np.ndarray, "examples"],
    too_long: int,
) -> ClassReport:
    """Counts of the chosen examples."""
    kept = int(chosen.sum())
    prompt_tokens = int(prompts[chosen].sum())
    completion_tokens = int(lengths[chosen].sum()) - prompt_tokens
    return ClassReport(
        kept=kept,
        truncated=int(truncated[chosen].sum()),
        too_long=too_long,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        mean_prompt_length=prompt_tokens / max(1, kept),
        mean_completion_length=completion_tokens / max(1, kept),
    )


def example_hash(tokens: Int32[np.ndarray, "tokens"], prompt_length: int) -> tuple[int, int]:
    """128-bit hash (high, low) of what a completion's log-probability depends on: its tokens and where it begins."""
    whole = np.append(tokens, np.int32(prompt_length)).astype("<i4")
    value = xxhash.xxh3_128_intdigest(whole.tobytes())
    return value >> 64, value & (2**64 - 1)
