"""One YAML document -> what it says and where it says it; strict, because a config file is input like any other."""

import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rdro_jax.errors import ConfigError

MAX_NODES = 10_000
"""YAML nodes of one document, aliases expanded."""
MAX_DEPTH = 32
"""Levels of nesting."""

COMMAND_LINE = "command line"

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp")}
_KEY_REFERENCE = re.compile(r"(?<!\\)\$\{[A-Za-z_][\w.]*\}")


class Layer(NamedTuple):
    """What one document sets."""

    values: dict[str, Any]
    """Nested keys; `${dotted.key}` not yet replaced."""
    places: dict[str, str]
    """Dotted key -> where it was said, such as `configs/rdro.yaml:12`."""


def read_document(text: str, where: str) -> Layer:
    """What the YAML mapping `text` sets. Raises: ConfigError naming `where` and the line."""
    root = _compose(text, where)
    if root is None:
        raise ConfigError(f"{where}: empty; wanted lines such as 'output_dir: runs/first'")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{where}: got a {_spell(root)}; wanted 'key: value' lines at the top level")
    return _construct(root, where)


def read_override(override: str) -> Layer:
    """What one `dotted.key=value` argument sets; the value is YAML. Raises: ConfigError."""
    key, equals, value = override.partition("=")
    names = key.split(".")
    if not equals or not all(name.isidentifier() for name in names):
        raise ConfigError(f"{COMMAND_LINE}: got '{override}'; wanted key=value, for example loss.alpha=0.3")
    where = f"{COMMAND_LINE}: {key}"
    node = _compose(value, where) or yaml.ScalarNode(_TAG + "null", "null")
    for name in reversed(names):
        node = yaml.MappingNode(_TAG + "map", [(yaml.ScalarNode(_TAG + "str", name), node)])
    layer = _construct(node, where)
    return Layer(layer.values, dict.fromkeys(layer.places, COMMAND_LINE))


def _compose(text: str, where: str) -> yaml.Node | None:
    """The node tree of `text`, which knows lines and repeats; None for an empty document."""
    try:
        # The Python loader: libyaml's overflows the C stack on a megabyte of brackets.
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(
            f"{_at(where, error.problem_mark)}: not YAML: {' '.join(filter(None, (error.context, error.problem)))}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} levels deep") from error


def _construct(root: yaml.Node, where: str) -> Layer:
    """Checked node tree -> layer."""
    places = {}
    for count, (key, place) in enumerate(_walk(root, "", where, depth=0)):
        if count > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES} values, aliases expanded")
        places[key] = place
    try:
        # OmegaConf reads numbers as people write them: 5e-7 is a float, for YAML 1.1 it is text.
        values = OmegaConf.load(io.StringIO(yaml.serialize(root, Dumper=yaml.SafeDumper)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: {one_line(error)}") from error
    return Layer(OmegaConf.to_container(values, resolve=False), places)  # pyright: ignore[reportArgumentType]


def _walk(node: yaml.Node, path: str, where: str, depth: int) -> Iterator[tuple[str, str]]:
    """Every (dotted key, place) below `node`, refusing what a config file has no use for."""
    at = _at(where, node.start_mark)
    if depth > MAX_DEPTH:
        raise ConfigError(f"{at}: nested more than {MAX_DEPTH} levels deep")
    if node.tag not in _PLAIN_TAGS:
        raise ConfigError(f"{at}: got the tag '{node.tag.replace(_TAG, '!!')}'; tags are not read, write a plain value")
    if isinstance(node, yaml.ScalarNode):
        _check_references(node.value, at)
    for key, place, value in _children(node, where):
        dotted = f"{path}.{key}" if path else key
        yield dotted, place
        yield from _walk(value, dotted, where, depth + 1)


def _children(node: yaml.Node, where: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """(key, place, value) of a mapping or sequence node; repeated and dotted keys are refused."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((str(index), _at(where, item.start_mark), item) for index, item in enumerate(node.value))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, str] = {}
    for key, value in node.value:
        at = _at(where, key.start_mark)
        if not isinstance(key, yaml.ScalarNode) or "." in key.value or key.value == "<<":
            raise ConfigError(f"{at}: got the key '{_spell(key)}'; wanted a single word, sections are nested")
        if key.value in seen:
            raise ConfigError(f"{at}: {key.value}: said twice, first at {seen[key.value]}; keep one")
        seen[key.value] = at
        key.tag = _TAG + "str"  # YAML 1.1 reads a bare `on:` as the truth value; a key is always a word
        yield key.value, at, value


def _check_references(value: str, at: str) -> None:
    """Raise ConfigError unless every `${...}` is a plain `${dotted.key}`."""
    if "${" in _KEY_REFERENCE.sub("", value):
        # ${oc.env:TOKEN} would write a secret into the run folder, where the resolved config is kept.
        raise ConfigError(f"{at}: got '{value}'; only ${{dotted.key}} is replaced, environment and functions are not")


def _spell(node: yaml.Node) -> str:
    """A key as it stands; "mapping" or "sequence" for what is no word."""
    return node.value if isinstance(node, yaml.ScalarNode) else node.tag.replace(_TAG, "")


def _at(where: str, mark: yaml.Mark | None) -> str:
    """`where`, with the line if it is a file."""
    return f"{where}:{mark.line + 1}" if mark and not where.startswith(COMMAND_LINE) else where


def one_line(error: Exception) -> str:
    """First line of an exception's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
