"""A row as its file has it -> a row with the columns we read: renamed, scores made labels, messages made prompts."""

import json
from collections.abc import Mapping
from typing import Any

from rdro_jax.data.config import Source
from rdro_jax.data.records import BadRow, shorten

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "observation": "tool"}
"""Names of the speakers in ShareGPT's form of a message, `{"from": "human", "value": "..."}`."""
OPTIONAL = ("weight", "alpha", "system", "tools", "chat_template_kwargs")
MESSAGE_COLUMNS = ("prompt", "completion", "chosen", "rejected")


def canonical_row(row: dict[str, object], source: Source) -> dict[str, object]:
    """The row under our names. What is null in a column that may be absent is absent.

    A conversation in `messages` is a prompt and, as its last message, the completion. A `system` text is the prompt's
    first message.

    Raises: BadRow.
    """
    row = _renamed(row, source.column_map)
    row = {name: value for name, value in row.items() if value is not None or name not in OPTIONAL}
    if source.label_threshold is not None and row.get("label") is not None:
        row["label"] = _score(row["label"]) >= source.label_threshold
    if "messages" in row and not row.keys() & {"completion", "chosen"}:
        row = _split_messages(row)
    row |= {name: _spoken(row[name]) for name in MESSAGE_COLUMNS if name in row}
    if "system" in row:
        row = _with_system(row)
    if isinstance(row.get("tools"), str):
        row["tools"] = _parsed(str(row["tools"]), "tools")
    return row


def _renamed(row: dict[str, object], column_map: tuple[tuple[str, str], ...]) -> dict[str, object]:
    """The row, its columns under our names; a column of ours that is mapped is never the file's own of that name."""
    taken = {theirs.partition(".")[0] for _, theirs in column_map} | {ours for ours, _ in column_map}
    kept = {name: value for name, value in row.items() if name not in taken}
    found = ((ours, *_looked_up(row, theirs)) for ours, theirs in column_map)
    return kept | {ours: value for ours, value, there in found if there}


def _looked_up(row: Mapping[str, Any], name: str) -> tuple[object, bool]:
    """The value under a dotted name, and whether there is one. A column that has dots in its name comes first."""
    if name in row:
        return row[name], True
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None, False
        value = value[part]
    return value, True


def _score(value: object) -> float:
    """A number, or text that spells one."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if number == number:
                return number
        except (ValueError, OverflowError):
            pass
    raise BadRow("label", "must be a number, because label_threshold is set", shorten(value))


def _split_messages(row: dict[str, object]) -> dict[str, object]:
    """`messages` -> `prompt` and `completion`."""
    messages = _spoken(row["messages"])
    if not isinstance(messages, list) or len(messages) < 2:
        raise BadRow("messages", "must be a list of at least two messages, the last the assistant's")
    rest = {name: value for name, value in row.items() if name != "messages"}
    return rest | {"prompt": messages[:-1], "completion": messages[-1:]}


def _spoken(value: object) -> object:
    """Messages with `role` and `content`, ShareGPT's among them; anything else as it is."""
    if not isinstance(value, list):
        return value
    return [_message(one) if isinstance(one, dict) and {"from", "value"} <= one.keys() else one for one in value]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    role = message["from"]
    return rest | {
        "role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role,
        "content": message["value"],
    }


def _with_system(row: dict[str, object]) -> dict[str, object]:
    """The row with its `system` text as the first message of the conversation."""
    system, prompt = row["system"], row.get("prompt")
    if not isinstance(system, str):
        raise BadRow("system", "must be text", shorten(system))
    rest = {name: value for name, value in row.items() if name != "system"}
    if not system.strip():
        return rest
    if prompt is None:
        raise BadRow("system", "stands beside a prompt that only chosen and rejected imply; put it into their messages")
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        raise BadRow("system", "stands beside a prompt that has a system message of its own")
    return rest | {"prompt": [{"role": "system", "content": system}, *turns]}


def _parsed(text: str, name: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(name, "is text that is no JSON", shorten(text)) from None
