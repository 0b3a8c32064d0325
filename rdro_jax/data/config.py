"""What the user says about the data: files, window, packing, and what to do with bad rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

Scalar = bool | int | float | str


def freeze_mapping(value: Any) -> Any:
    """Pairs sorted by key: the hashable form of a YAML mapping. Anything else passes through for pydantic to judge.

    >>> freeze_mapping({"enable_thinking": False, "date_string": "26 Jul 2024"})
    (('date_string', '26 Jul 2024'), ('enable_thinking', False))
    """
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


FrozenMapping = Annotated[tuple[tuple[str, Scalar], ...], BeforeValidator(freeze_mapping), PlainSerializer(dict)]


@dataclass(frozen=True)
class DataConfig:
    """Where the rows are and how they become packed batches."""

    train: str
    """JSONL file of training rows (plain or gzip): `prompt`, `completion`, `label`, or `prompt`, `chosen`, `rejected`;
    optional `weight` and `alpha`."""
    eval: str | None = None
    """JSONL file of held-out rows in the same form; None = no evaluation."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens in a packed row, hence the most one example may have, or both halves of a pair that stays together."""
    slots: Annotated[int, Field(ge=1)] = 16
    """Most examples that share a packed row; a pair that stays together takes two."""
    batching: Literal["stratified", "natural"] = "stratified"
    """`stratified`: every global batch holds both classes at the rate of the data. `natural`: a plain shuffle."""
    truncation: Literal["keep_end", "drop", "error"] = "keep_end"
    """Examples over `max_length`: the prompt loses its beginning and the completion is cut only if that is not enough;
    or the example is left out and counted; or it is a bad row."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Bad rows stop the run with a list of them, or are left out and counted by reason."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """With `on_bad_row: skip`, the share of bad rows above which the run stops all the same."""
    chat_template_kwargs: FrozenMapping = ()
    """Variables handed to the chat template, as a mapping: `{enable_thinking: true}`."""
