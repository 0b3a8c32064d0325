"""Rows of the forms users have -> records. Today: unpaired rows `prompt, completion, label`, optional `weight`."""

from rdro_jax.data.records import BadRow, Message, Record, shorten

UNPAIRED_COLUMNS = ("prompt", "completion", "label", "weight")

TEXT_LABELS = {"true": True, "false": False}
NUMBER_LABELS = {1: True, 0: False, -1: False}
LEAST_WEIGHT = 1e-6


def unpaired_record(row: dict[str, object], line: int, *, require_label: bool = True) -> Record:
    """The record of a row `prompt, completion, label`; a row without label is desirable where none is required.

    Raises: BadRow naming the field.
    """
    return Record(
        prompt=_prompt(_field(row, "prompt")),
        completion=_completion(_field(row, "completion")),
        desirable=_label(_field(row, "label")) if require_label or "label" in row else True,
        weight=_weight(row.get("weight", 1.0)),
        line=line,
    )


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


def _completion(value: object) -> str | Message:
    """Text as it stands, or the one assistant message; never blank."""
    if isinstance(value, str):
        content, completion = _text(value, "completion"), value
    else:
        messages = _messages(value, "completion")
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            roles = shorten(", ".join(str(message["role"]) for message in messages))
            raise BadRow("completion", "must be one assistant message", f"roles {roles}")
        completion, content = messages[0], str(messages[0]["content"])
    if not content.strip():
        raise BadRow("completion", "is blank")
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
        _check_strings(message, name)
    return value


def _check_strings(value: object, name: str) -> None:
    """Checks every text inside a message, keys included."""
    if isinstance(value, str):
        _text(value, name)
    elif isinstance(value, dict | list):
        for part in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_strings(part, name)


def _text(value: str, name: str) -> str:
    """The text, if it can be encoded: tokenizers crash on half a surrogate pair, and C strings end at NUL."""
    if "\x00" in value:
        raise BadRow(name, "contains a NUL character", f"at character {value.index(chr(0)) + 1}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(name, "contains half a surrogate pair", f"{value[error.start]!a} at {error.start + 1}") from None
    return value


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
