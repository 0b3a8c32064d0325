"""What a row must become, and how rows that cannot are named, counted and reported."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from rdro_jax.errors import RecordError

Message = dict[str, Any]
"""One turn of a conversation: `role`, `content`, and whatever else the chat template reads."""

NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})

LISTED_FAULTS = 20
"""Bad rows spelled out in an error; the others are in the totals."""


class Record(NamedTuple):
    """One judged completion, validated but not yet rendered."""

    prompt: str | list[Message]
    """Text, or the turns before the completion, the last of them not the assistant's."""
    completion: str | Message
    """Text, or one assistant message."""
    desirable: bool
    """True where the label says preferred."""
    weight: float
    """Weight of the example in the loss; positive."""
    line: int
    """Line of the file the row stood in, from 1."""
    alpha: float | None = None
    """Share of desirable completions among those of this prompt, if the row says."""
    column: str = "completion"
    """Where the completion stood in the row: `completion`, or of a pair `chosen` or `rejected`."""
    variables: Mapping[str, Any] = NO_VARIABLES
    """What the row tells the chat template beside its messages: `tools`, and its `chat_template_kwargs`."""


class BadRow(ValueError):
    """A row that cannot be used: which field, why, and (not part of the reason it is counted under) what was there."""

    def __init__(self, field: str, reason: str, got: str = ""):
        super().__init__(field, reason, got)
        self.field, self.reason, self.got = field, reason, got

    @property
    def cause(self) -> str:
        """The key under which such rows are counted."""
        return f"{self.field}: {self.reason}"

    @property
    def message(self) -> str:
        """The cause, and what was there."""
        return f"{self.cause}, got {self.got}" if self.got else self.cause


@dataclass
class FaultLog:
    """Bad rows: the first few in words, all of them by cause."""

    first: list[str] = field(default_factory=list)
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, fault: BadRow) -> None:
        """Counts one bad row, and keeps its message while there are few."""
        self.causes[fault.cause] += 1
        if len(self.first) < LISTED_FAULTS:
            self.first.append(f"{where}: {fault.message}")

    def extend(self, other: "FaultLog") -> None:
        """Adds the bad rows that come after these."""
        self.causes += other.causes
        self.first += other.first[: LISTED_FAULTS - len(self.first)]

    def refuse(self, path: str, rows: int, remedy: str) -> None:
        """Raises RecordError: one line per listed row, then the totals by cause and what to do."""
        bad = self.causes.total()
        more = [f"... and {bad - len(self.first)} more"] if bad > len(self.first) else []
        totals = ", ".join(f"{count} x {cause}" for cause, count in self.causes.most_common())
        summary = f"{path}: {bad} of {rows} rows cannot be used ({totals}); {remedy}"
        raise RecordError("\n".join([*self.first, *more, summary]))


def texts_in(value: object) -> Iterator[str]:
    """Every text inside a JSON value, keys included."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            left += part


def shorten(value: object, limit: int = 60) -> str:
    """The value as Python writes it, cut to `limit` characters, on one line and safe to print."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
