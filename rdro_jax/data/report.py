"""What became of every row of a file, counted: the DataReport that each run leaves beside its metrics."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Int64

from rdro_jax.data.formats import Format

Layout = Literal["unpaired", "paired"]
"""How a loss wants its examples: each by itself, or in pairs that stay together."""


@dataclass(frozen=True)
class ClassReport:
    """What became of one class, desirable or undesirable."""

    kept: int = 0
    """Examples."""
    truncated: int = 0
    """Examples of which something was cut."""
    too_long: int = 0
    """Examples left out or refused because their row exceeds `max_length`."""
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
    """What became of every row of a file: `rows` = rows kept + the sum of `dropped`."""

    path: str
    """The file."""
    rows: int
    """Lines that are not blank."""
    kept: int
    """Examples: one of each unpaired row kept, two of each paired row kept."""
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
    format: Format = "unpaired"
    """What the rows are, told by their columns."""
    layout: Layout = "unpaired"
    """What was made of them: paired rows in the unpaired layout are two examples each, to be kept apart."""

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


def class_report(
    members: Bool[np.ndarray, "examples"],
    lengths: Int64[np.ndarray, "examples"],
    prompts: Int32[np.ndarray, "examples"],
    truncated: Bool[np.ndarray, "examples"],
    too_long: int,
) -> ClassReport:
    """Counts of the examples that are members of the class."""
    kept = int(members.sum())
    prompt_tokens = int(prompts[members].sum())
    completion_tokens = int(lengths[members].sum()) - prompt_tokens
    return ClassReport(
        kept=kept,
        truncated=int(truncated[members].sum()),
        too_long=too_long,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        mean_prompt_length=prompt_tokens / max(1, kept),
        mean_completion_length=completion_tokens / max(1, kept),
    )
