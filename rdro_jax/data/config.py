"""What the user says about the data: sources, window, packing, and what to do with bad rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PlainSerializer, PositiveInt, Tag

Scalar = bool | int | float | str


def freeze_mapping(value: Any) -> Any:
    """Pairs sorted by key: the hashable form of a YAML mapping. Anything else passes through for pydantic to judge.

    >>> freeze_mapping({"enable_thinking": False, "date_string": "26 Jul 2024"})
    (('date_string', '26 Jul 2024'), ('enable_thinking', False))
    """
    return tuple(sorted(value.items())) if isinstance(value, Mapping) else value


FrozenMapping = Annotated[tuple[tuple[str, Scalar], ...], BeforeValidator(freeze_mapping), PlainSerializer(dict)]
ColumnMap = Annotated[tuple[tuple[str, str], ...], BeforeValidator(freeze_mapping), PlainSerializer(dict)]
Path = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


@dataclass(frozen=True)
class Source:
    """One place rows come from, and how its columns are read."""

    path: Path
    """File (JSONL, also .gz or .zst; .json; Parquet; Arrow; ArrayRecord), folder (`save_to_disk`, or files of one of
    these kinds), or a data set of the Hugging Face hub: `hub:owner/name`."""
    split: str | None = None
    """Split of a folder or hub data set that has several, for example `train`."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; a commit keeps the rows what they are."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Times each row is taken: 2 takes all rows twice, 0.5 about half of them, drawn by their numbers."""
    max_samples: PositiveInt | None = None
    """Rows read from the beginning; None = all."""
    column_map: ColumnMap = ()
    """Our column -> theirs, as a mapping: `{completion: response, label: ratings.helpful}`; dots go into objects."""
    label_threshold: float | None = None
    """`label` is a score, and desirable from this value on; None = `label` is a label."""


def _kind(value: Any) -> str:
    return "path" if isinstance(value, str) else "sources"


Sources = Annotated[Annotated[Path, Tag("path")] | Annotated[tuple[Source, ...], Tag("sources")], Discriminator(_kind)]
"""A path alone, or a list of sources."""


def sources_of(value: str | Source | tuple[Source, ...]) -> tuple[Source, ...]:
    """The sources a config names, a path alone being one with every default.

    >>> [source.path for source in sources_of("rows.jsonl")]
    ['rows.jsonl']
    """
    if isinstance(value, str):
        return (Source(value),)
    return (value,) if isinstance(value, Source) else value


@dataclass(frozen=True)
class DataConfig:
    """Where the rows are and how they become packed batches."""

    train: Sources
    """Training rows: a path, or a list of sources. Rows are `prompt`, `completion`, `label`, or `prompt`, `chosen`,
    `rejected`, or `messages`; optional `system`, `tools`, `chat_template_kwargs`, `weight` and `alpha`."""
    eval: Sources | None = None
    """Held-out rows in the same form; None = those of `heldout_fraction`, or no evaluation."""
    heldout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts of `train` that are held out for evaluation, chosen by the prompt's hash: all rows of a
    prompt fall on one side, and on the same one in every run. Not together with `eval`."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens in a packed row, hence the most one example may have, or both halves of a pair that stays together."""
    max_prompt_length: PositiveInt | None = None
    """Most tokens of a prompt, its template included; None = what `max_length` leaves."""
    max_completion_length: PositiveInt | None = None
    """Most tokens of a completion, its end of turn included; None = what `max_length` leaves."""
    truncation: Literal["keep_end", "keep_start", "drop", "error"] = "keep_end"
    """Examples over these lengths. `keep_end`, `keep_start`: the prompt loses its beginning, or its end before the
    assistant's header, and the completion is cut only if that is not enough. `drop`: the example is left out and
    counted. `error`: it is a bad row."""
    slots: Annotated[int, Field(ge=1)] = 16
    """Most examples that share a packed row; a pair that stays together takes two. 1 = no packing."""
    batching: Literal["stratified", "natural", "balanced"] = "stratified"
    """`stratified`: every global batch holds both classes at the rate of the data. `natural`: a plain shuffle.
    `balanced`: every global batch is half desirable; the rarer class is repeated, and weights make up for it."""
    pair_by_prompt: bool = False
    """Make pairs of unpaired rows for a loss over pairs: a desirable and an undesirable completion of one prompt, each
    in half of `max_length`. Rows without a counterpart are left out and counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Bad rows stop the run with a list of them, or are left out and counted by reason."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """With `on_bad_row: skip`, the share of bad rows above which the run stops all the same."""
    chat_template_kwargs: FrozenMapping = ()
    """Variables handed to the chat template, as a mapping: `{enable_thinking: true}`."""
    prepared: Path | None = None
    """Folder that keeps tokenised data for later runs; None = `<output_dir>/prepared`."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that tokenise; 0 = one per CPU core."""
