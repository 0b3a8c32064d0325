"""pydantic's list of errors -> the one line a person wants to read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing",)
NAMELESS = ("union_tag_not_found", "union_tag_invalid")


def explain(
    error: ValidationError, schema: type[BaseModel], values: Mapping[str, Any], places: Mapping[str, str], where: str
) -> str:
    """`place: dotted.key: got, wanted` of the first problem, unknown keys first, and how many more there are."""
    problems: dict[str, list[Any]] = {}
    # A misspelt required key is unknown *and* missing: the first is the cause.
    for detail in sorted(error.errors(), key=lambda detail: detail["type"] not in UNKNOWN):
        problems.setdefault(_dotted(detail, values), []).append(detail)
    key, details = next(iter(problems.items()))
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place_of(key, places, where)}: {key}: {_problem(key, details, schema, values)}{rest}"


def place_of(key: str, places: Mapping[str, str], where: str) -> str:
    """Where `key`, or the nearest section around it, was said."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, where)


def _dotted(detail: Any, values: Any) -> str:
    """The key pydantic speaks of as the user wrote it: without the union members it names between the keys."""
    keys = []
    for part in detail["loc"]:
        if isinstance(part, int) and isinstance(values, list):
            keys.append(str(part))
            values = values[part]
        elif isinstance(values, Mapping) and part in values:
            keys.append(part)
            values = values[part]
    if detail["type"] in MISSING:
        keys.append(detail["loc"][-1])
    if detail["type"] in NAMELESS:
        keys.append("name")
    return ".".join(keys)


def _problem(key: str, details: list[Any], schema: Any, values: Mapping[str, Any]) -> str:
    """What is wrong with one key and what to do."""
    detail = details[0]
    section, _, name = key.rpartition(".")
    match detail["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"unknown key; {_suggestion(section, name, schema, values)}"
        case "missing":
            return "missing; it has no default"
        case "union_tag_not_found":
            return f"missing; wanted {' or '.join(_kind_names(section, schema))}"
        case "union_tag_invalid":
            return f"got '{detail['ctx']['tag']}'; wanted {' or '.join(_kind_names(section, schema))}"
        case "value_error":
            return str(detail["ctx"]["error"])
    wanted = " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
    return f"got {_shown(detail['input'])}; wanted {wanted}"


def _wanted(detail: Any) -> str:
    if detail["type"].startswith(("dataclass_", "model_", "dict_")):
        return "a section of keys"
    wanted = detail["msg"].removeprefix("Input should be ").replace("String should", "text to")
    return f"a number {wanted}" if wanted.startswith(("greater", "less")) else wanted


def _shown(value: Any) -> str:
    """A value as YAML spells it, cut where nobody reads on."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _suggestion(section: str, name: str, schema: Any, values: Mapping[str, Any]) -> str:
    """The known key nearest to an unknown one: in another section under the very same name, else in its own."""
    elsewhere = [key for key in _all_keys(schema) if key.rpartition(".")[2] == name and key != f"{section}.{name}"]
    own = _keys_at(section, schema, values)
    # Half the letters are enough: the shortest keys have two.
    near = elsewhere[:1] or get_close_matches(name, own, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"{section or 'the top level'} knows {', '.join(own)}"


def _kind_names(section: str, schema: Any) -> list[str]:
    """Names of the kinds a section can have, quoted."""
    for part in section.split("."):
        annotation = _types(schema)[part]
        schema = _section(annotation, None)
    return [f"'{kind.name}'" for kind in _sections(annotation)]


def _keys_at(section: str, schema: Any, values: Any) -> list[str]:
    """Keys of the section with that dotted name; of the selected kind where the section has kinds."""
    for part in filter(None, section.split(".")):
        if isinstance(values, list):
            values = values[int(part)]
            continue
        values = values[part]
        schema = _section(_types(schema)[part], values)
    return list(_types(schema))


def _section(annotation: Any, values: Any) -> Any:
    """The dataclass an annotation stands for; of a union, the one `values` selects by name."""
    kinds = list(_sections(annotation))
    named = [kind for kind in kinds if isinstance(values, Mapping) and getattr(kind, "name", ...) == values.get("name")]
    return (named or kinds)[0]


def _sections(annotation: Any) -> Iterator[Any]:
    """Every dataclass or model in an annotation."""
    if get_origin(annotation) is Annotated:
        yield from _sections(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, tuple):
        for part in get_args(annotation):
            yield from _sections(part)
    elif isinstance(annotation, type) and is_dataclass(annotation):
        yield annotation


def _types(schema: Any) -> dict[str, Any]:
    """Key -> annotation of a dataclass or model."""
    hints = get_type_hints(schema, include_extras=True)
    known = schema.model_fields if issubclass(schema, BaseModel) else [field.name for field in fields(schema)]
    return {name: hints[name] for name in known}


def _all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree, all kinds of every section."""
    for name, annotation in _types(schema).items():
        yield prefix + name
        for section in _sections(annotation):
            yield from _all_keys(section, f"{prefix}{name}.")
