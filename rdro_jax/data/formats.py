"""Rows of the forms users have -> records: unpaired `prompt, completion, label`, paired `prompt, chosen, rejected`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rdro_jax.data.records import NO_VARIABLES, BadRow, Message, Record, shorten, texts_in

Format = Literal["unpaired", "paired"]
"""What the rows of a file are, told by their columns."""

ALWAYS_READ = ("weight", "alpha", "tools", "chat_template_kwargs")
COLUMNS: dict[Format, tuple[str, ...]] = {
    "unpaired": ("prompt", "completion", "label", *ALWAYS_READ),
    "paired": ("prompt", "chosen", "rejected", *ALWAYS_READ),
}
"""Columns that are read; of these `ALWAYS_READ` may be absent, and `prompt` where messages imply it."""

SAME_AS_CHOSEN = "is the same as chosen"
"""A pair that prefers nothing: its loss has no gradient, or teaches what is not there."""

TEXT_LABELS = {"true": True, "false": False}
NUMBER_LABELS = {1: True, 0: False, -1: False}
LEAST_WEIGHT = 1e-6


def detect_format(rows: Sequence[dict[str, object]]) -> Format | None:
    """What most rows are, told by their columns; None where no row tells. A bad row or two do not change it."""
    pairs = [("chosen" in row) + ("rejected" in row) for row in rows]
    singles = [("completion" in row) + ("label" in row) for row in rows]
    if not any(pairs) and not any(singles):
        return None
    # A row may have both, as binarised ratings do: then the pair is the whole of it.
    return "paired" if sum(pairs) >= sum(singles) else "unpaired"


def read_records(row: dict[str, object], line: int, form: Format, *, require_label: bool = True) -> tuple[Record, ...]:
    """The records of a row: one of an unpaired row, the chosen and the rejected one of a paired row.

    Raises: BadRow naming the field.
    """
    return paired_records(row, line) if form == "paired" else (unpaired_record(row, line, require_label=require_label),)


def unpaired_record(row: dict[str, object], line: int, *, require_label: bool = True) -> Record:
    """The record of a row `prompt, completion, label`; a row without label is desirable where none is required.

    Raises: BadRow naming the field.
    """
    return Record(
        prompt=prompt_of(row),
        completion=_completion(_field(row, "completion"), "completion"),
        desirable=_label(_field(row, "label")) if require_label or "label" in row else True,
        weight=_weight(row.get("weight", 1.0)),
        line=line,
        alpha=_alpha(row["alpha"]) if "alpha" in row else None,
        variables=_variables(row),
    )


def prompt_of(row: dict[str, object]) -> str | list[Message]:
    """The prompt of a row: text, or turns that leave the next one to the assistant.

    Raises: BadRow.
    """
    return _prompt(_field(row, "prompt"))


def paired_records(row: dict[str, object], line: int) -> tuple[Record, Record]:
    """The chosen and the rejected record of a row `prompt, chosen, rejected`; they share prompt, weight and alpha.

    Where both sides are conversations of several messages, the prompt is what they begin with in common; a `prompt`
    column beside them must agree with it.

    Raises: BadRow naming the field.
    """
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if _is_conversation(chosen) and _is_conversation(rejected):
        prompt, chosen, rejected = _implied_prompt(row, chosen, rejected)
    else:
        prompt = _prompt(_field(row, "prompt"))
    weight = _weight(row.get("weight", 1.0))
    alpha = _alpha(row["alpha"]) if "alpha" in row else None
    variables = _variables(row)
    return (
        Record(prompt, _completion(chosen, "chosen"), True, weight, line, alpha, "chosen", variables),
        Record(prompt, _completion(rejected, "rejected"), False, weight, line, alpha, "rejected", variables),
    )


def _is_conversation(value: object) -> bool:
    """True for more than the one message that answers a prompt."""
    return isinstance(value, list) and len(value) > 1


def _implied_prompt(
    row: dict[str, object], chosen: object, rejected: object
) -> tuple[list[Message], list[Message], list[Message]]:
    """The longest run of messages both sides begin with, and the rest of each side."""
    ours, theirs = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if ours == theirs:
        raise BadRow("rejected", SAME_AS_CHOSEN)
    shared = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    for side, name in ((ours, "chosen"), (theirs, "rejected")):
        if len(side) == shared:
            raise BadRow(name, "is only the beginning of the other conversation of the pair")
    if shared == 0:
        raise BadRow("prompt", "chosen and rejected do not begin with a message in common")
    prompt = ours[:shared]
    if "prompt" in row and not _agrees(_prompt(_field(row, "prompt")), prompt):
        raise BadRow("prompt", "is not what the messages of chosen and rejected begin with")
    return _prompt(prompt), ours[shared:], theirs[shared:]  # type: ignore[return-value]  # a list stays a list


def _agrees(given: str | list[Message], implied: list[Message]) -> bool:
    """True where a `prompt` column says what the conversations say; text may be any one of their messages."""
    if isinstance(given, str):
        return any(given.strip() == message["content"].strip() for message in implied)
    return given == implied


def _field(row: dict[str, object], name: str) -> object:
    if name not in row:
        raise BadRow(name, "missing", f"columns {shorten(', '.join(row))}")
    if row[name] is None:
        raise BadRow(name, "is null")
    return row[name]


def _prompt(value: object) -> str | list[Message]:
    """Text as it stands, or a checked conversation that leaves the next turn to the assistant."""
    if isinstance(value, str):
        return _text(value, "prompt")
    messages = _messages(value, "prompt")
    if messages[-1]["role"] == "assistant":
        raise BadRow("prompt", "ends with an assistant message, but the completion is the assistant's")
    return messages


def _completion(value: object, name: str) -> str | Message:
    """Text as it stands, or the one assistant message; never blank."""
    if isinstance(value, str):
        content, completion = _text(value, name), value
    else:
        messages = _messages(value, name)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            roles = shorten(", ".join(str(message["role"]) for message in messages))
            raise BadRow(name, "must be one assistant message", f"roles {roles}")
        completion, content = messages[0], str(messages[0]["content"])
    if not content.strip():
        raise BadRow(name, "is blank")
    return completion


def _messages(value: object, name: str) -> list[Message]:
    """A non-empty list of messages with a text `role` and a text `content`; other keys are kept for the template."""
    if not isinstance(value, list):
        raise BadRow(name, "must be text or a list of messages", type(value).__name__)
    if not value:
        raise BadRow(name, "is an empty list")
    for message in value:
        if not isinstance(message, dict):
            raise BadRow(name, "a message must be an object with `role` and `content`", type(message).__name__)
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise BadRow(name, f"a message needs a text `{key}`", shorten(message.get(key)))
        for text in texts_in(message):
            _text(text, name)
    return value


def _text(value: str, name: str) -> str:
    """The text, if it can be encoded: tokenizers crash on half a surrogate pair, and C strings end at NUL."""
    if "\x00" in value:
        raise BadRow(name, "contains a NUL character", f"at character {value.index(chr(0)) + 1}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(name, "contains half a surrogate pair", f"{value[error.start]!a} at {error.start + 1}") from None
    return value


def _variables(row: dict[str, object]) -> Mapping[str, Any]:
    """`tools` and `chat_template_kwargs` of a row, as variables of the chat template."""
    if not row.keys() & {"tools", "chat_template_kwargs"}:
        return NO_VARIABLES
    kwargs, tools = row.get("chat_template_kwargs", {}), row.get("tools", [])
    if not isinstance(kwargs, dict):
        raise BadRow("chat_template_kwargs", "must be an object", shorten(kwargs))
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools", "must be a list of objects", shorten(tools))
    for name, value in (("chat_template_kwargs", kwargs), ("tools", tools)):
        for text in texts_in(value):
            _text(text, name)
    return kwargs | ({"tools": tools} if tools else {})


def _label(value: object) -> bool:
    """bool, 0/1, +-1 or "true"/"false"."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in NUMBER_LABELS:
        return NUMBER_LABELS[int(value)]
    if isinstance(value, str) and value.lower() in TEXT_LABELS:
        return TEXT_LABELS[value.lower()]
    raise BadRow("label", 'must be a boolean, 0/1, 1/-1 or "true"/"false"', shorten(value))


def _weight(value: object) -> float:
    """A number that float32 holds as a positive one: zero would look like an empty slot."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_WEIGHT <= value <= 1 / LEAST_WEIGHT:
        raise BadRow("weight", f"must be a number from {LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}", shorten(value))
    return float(value)


def _alpha(value: object) -> float:
    """A share of completions."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise BadRow("alpha", "must be a number between 0 and 1", shorten(value))
    return float(value)
