"""What became of every row, counted: the DataReport that each run leaves beside its metrics."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from rdro_jax.data.formats import Format
from rdro_jax.data.records import FaultLog

Layout = Literal["unpaired", "paired"]
"""How a loss wants its examples: each by itself, or in pairs that stay together."""

QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class ClassReport:
    """What became of one class, desirable or undesirable."""

    kept: int = 0
    """Examples."""
    truncated: int = 0
    """Examples of which something was cut."""
    too_long: int = 0
    """Examples left out or refused because their row exceeds a length."""
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    completion_tokens: int = 0
    """Tokens of all completions, end of turn included."""
    mean_prompt_length: float = 0.0
    """Tokens."""
    mean_completion_length: float = 0.0
    """Tokens."""
    prompt_lengths: Mapping[str, int] = field(default_factory=dict)
    """Quantiles, in tokens."""
    completion_lengths: Mapping[str, int] = field(default_factory=dict)
    """Quantiles, in tokens."""


@dataclass(frozen=True)
class SourceReport:
    """What was read of one source."""

    path: str
    rows: int = 0
    """Rows, each as often as its source's weight has it."""
    format: Format | None = None
    """What the rows are, told by their columns; None where there are none."""
    revision: str | None = None
    """Commit of a hub data set."""

    def add(self, rows: int, form: Format) -> "SourceReport":
        """This and some rows more."""
        return dataclasses.replace(self, rows=self.rows + rows, format=form)


@dataclass(frozen=True)
class PromptReport:
    """What the prompts have in common with each other."""

    prompts: int
    """Different prompts."""
    with_both_classes: int
    """Prompts that have a desirable and an undesirable completion."""
    alpha: Mapping[str, float]
    """Quantiles over the prompts of the share of desirable completions: far apart, one alpha does not fit them all."""


@dataclass(frozen=True)
class PackingReport:
    """How full the rows of a batch are."""

    rows: int
    """Packed rows of one epoch."""
    examples_per_row: float
    utilisation: float
    """Share of the places of these rows that hold a token."""
    padded_utilisation: float
    """The share if each example had a row of `max_length` for itself."""
    lost_tokens: int
    """Places of one epoch that hold none."""


@dataclass(frozen=True)
class DataReport:
    """What became of every row: `rows` = rows kept + the sum of `dropped` + `elsewhere`."""

    path: str
    """The sources."""
    rows: int
    """Rows, blank lines aside."""
    kept: int
    """Examples: one of each unpaired row kept, two of each paired row kept."""
    dropped: dict[str, int]
    """Rows left out, by reason."""
    desirable: ClassReport
    """The preferred examples."""
    undesirable: ClassReport
    """The others."""
    alpha: float
    """Share of the weight that is on desirable examples; the share of examples where all weigh the same."""
    tokens: int
    """Tokens of all examples."""
    unterminated: int
    """Examples that do not end with an end-of-turn token."""
    ignored_columns: tuple[str, ...]
    """Columns that were not read."""
    format: Format | Literal["mixed"] = "unpaired"
    """What the rows are, told by their columns."""
    layout: Layout = "unpaired"
    """What was made of them: paired rows in the unpaired layout are two examples each, to be kept apart."""
    sources: tuple[SourceReport, ...] = ()
    """What was read, source by source."""
    elsewhere: int = 0
    """Rows whose prompt is on the other side of the held-out split."""
    duplicates: int = 0
    """Examples with the tokens and the label of an earlier one."""
    contradictory: int = 0
    """Examples whose tokens stand there with the other label as well."""
    by_prompt: PromptReport | None = None
    """Class balance prompt by prompt."""
    packing: PackingReport | None = None
    """How full the rows of the first epoch are; None where no epoch was planned."""
    tokenizer: str | None = None
    """Hash of the tokenizer's files, its chat template among them; None where nothing was stored."""

    def summary(self) -> str:
        """The report in one line."""
        left_out = ", ".join(f"{count} x {reason}" for reason, count in self.dropped.items()) or "none"
        full = f", rows {self.packing.utilisation:.1%} full" if self.packing else ""
        return (
            f"{self.kept} examples of {self.rows} {self.format} rows ({self.desirable.kept} desirable, "
            f"{self.undesirable.kept} not; alpha {self.alpha:.4f}), {self.tokens} tokens{full}; cut: "
            f"{self.desirable.truncated} desirable, {self.undesirable.truncated} not; left out: {left_out}"
        )

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


@dataclass
class Tally:
    """What was read so far, in numbers."""

    rows: int = 0
    elsewhere: int = 0
    """Rows whose prompt is on the other side of the held-out split."""
    faults: FaultLog = field(default_factory=FaultLog)
    columns: set[str] = field(default_factory=set)
    """Names of columns that were not read."""
    too_long: Counter[bool] = field(default_factory=Counter)
    """Examples of each class whose row is too long."""
    unterminated: int = 0
    """Examples that do not end with an end-of-turn token."""

    def extend(self, other: "Tally") -> None:
        """Adds what comes after this."""
        self.rows += other.rows
        self.elsewhere += other.elsewhere
        self.faults.extend(other.faults)
        self.columns |= other.columns
        self.too_long += other.too_long
        self.unterminated += other.unterminated


def names_of(sources: Sequence[SourceReport]) -> str:
    """The sources in one word."""
    return ", ".join(source.path for source in sources)


def make_report(
    arrays: Mapping[str, np.ndarray], tally: Tally, sources: Sequence[SourceReport], layout: Layout
) -> DataReport:
    """The report of examples given as `data.examples.Arrays`, and of their rows."""
    desirable, weight = arrays["desirable"], arrays["weight"]
    forms: list[Format] = sorted({source.format for source in sources if source.format})
    duplicates, contradictory = repetitions(arrays["hashes"], desirable)
    return DataReport(
        path=names_of(sources),
        rows=tally.rows,
        kept=len(desirable),
        dropped=dict(tally.faults.causes.most_common()),
        desirable=class_report(desirable, arrays, tally.too_long[True]),
        undesirable=class_report(~desirable, arrays, tally.too_long[False]),
        alpha=float(weight[desirable].sum(dtype=np.float64) / weight.sum(dtype=np.float64)),
        tokens=int(arrays["lengths"].sum(dtype=np.int64)),
        unterminated=tally.unterminated,
        ignored_columns=tuple(sorted(tally.columns)),
        format=forms[0] if len(forms) == 1 else "mixed",
        layout=layout,
        sources=tuple(sources),
        elsewhere=tally.elsewhere,
        duplicates=duplicates,
        contradictory=contradictory,
        by_prompt=prompt_report(arrays["prompt_hashes"], desirable),
    )


def class_report(members: Bool[np.ndarray, "examples"], arrays: Mapping[str, np.ndarray], too_long: int) -> ClassReport:
    """Counts of the examples that are members of the class."""
    kept = int(members.sum())
    prompts = arrays["prompt_lengths"][members].astype(np.int64)
    completions = arrays["lengths"][members] - prompts
    return ClassReport(
        kept=kept,
        truncated=int(arrays["truncated"][members].sum()),
        too_long=too_long,
        prompt_tokens=int(prompts.sum()),
        completion_tokens=int(completions.sum()),
        mean_prompt_length=int(prompts.sum()) / max(1, kept),
        mean_completion_length=int(completions.sum()) / max(1, kept),
        prompt_lengths=_quantiles(prompts),
        completion_lengths=_quantiles(completions),
    )


def _quantiles(lengths: Int[np.ndarray, "members"]) -> dict[str, int]:
    """Of the lengths; none of no lengths."""
    if not len(lengths):
        return {}
    return {name: int(np.quantile(lengths, share, method="higher")) for name, share in QUANTILES.items()}


def repetitions(hashes: Int[np.ndarray, "examples 2"], desirable: Bool[np.ndarray, "examples"]) -> tuple[int, int]:
    """Examples that repeat an earlier one with its label, and examples that stand there with both labels."""
    _, group, counts = np.unique(hashes[:, 1], return_inverse=True, return_counts=True)
    positives = np.bincount(group, weights=desirable).astype(np.int64)
    kinds = (positives > 0).astype(int) + (positives < counts)
    return len(desirable) - int(kinds.sum()), int(counts[kinds == 2].sum())


def prompt_report(prompts: Int[np.ndarray, "examples"], desirable: Bool[np.ndarray, "examples"]) -> PromptReport:
    """Class balance prompt by prompt."""
    _, group, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    rates = np.bincount(group, weights=desirable) / counts
    return PromptReport(
        prompts=len(counts),
        with_both_classes=int(((rates > 0) & (rates < 1)).sum()),
        alpha={name: float(np.quantile(rates, share)) for name, share in QUANTILES.items()},
    )
