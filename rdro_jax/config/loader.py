"""load_config: YAML files, what they inherit and `key=value` overrides -> one checked Config."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from rdro_jax.config.document import Layer, one_line, read_document, read_override
from rdro_jax.config.explain import explain, place_of
from rdro_jax.config.schema import Config
from rdro_jax.errors import ConfigError

MAX_BYTES = 1 << 20


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config that the file at `path` describes, with `overrides` such as "loss.alpha=0.3" applied.

    A file inherits by `defaults: [base/one.yaml, ...]`, paths relative to itself; what is said later wins, the file
    over its defaults, the overrides over all. Where a section's `name` changes, its earlier keys are dropped.
    `${dotted.key}` stands for another key's value.

    Raises: ConfigError, one line with file and line (or "command line"), dotted key, what was got and what is wanted.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.yaml"
    >>> _ = path.write_text("{output_dir: runs/a, model: {path: base}, data: {train: rows.jsonl}, loss: {name: rdro}}")
    >>> load_config(path, ["loss.alpha=0.3"]).loss.alpha
    0.3
    """
    layer = _read_with_defaults(Path(path), ())
    for override in overrides:
        layer = _stack(layer, read_override(override))
    return _validate(_resolve(layer.values, layer.places, str(path)), layer.places, str(path))


def _read_with_defaults(path: Path, chain: tuple[Path, ...]) -> Layer:
    """The layer of a file on top of the files it inherits."""
    if path.resolve() in [parent.resolve() for parent in chain]:
        raise ConfigError(f"{chain[0]}: defaults go in a circle: {' -> '.join(map(str, (*chain, path)))}")
    own = read_document(read_text(path), str(path))
    defaults = own.values.pop("defaults", [])
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise ConfigError(f"{own.places['defaults']}: defaults: got {defaults!r}; wanted a list of files")
    layer = Layer({}, {})
    for name in defaults:
        layer = _stack(layer, _read_with_defaults(path.parent / name, (*chain, path)))
    return _stack(layer, own)


def read_text(path: Path) -> str:
    """Text of a config file. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        near = get_close_matches(path.name, [other.name for other in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB; wanted a config file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); wanted a YAML file") from error


def _stack(below: Layer, above: Layer) -> Layer:
    return Layer(_merge(below.values, above.values), {**below.places, **above.places})


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` with what `above` sets; a section of another `name` starts afresh, for its keys were the old name's."""
    if "name" in below and "name" in above and below["name"] != above["name"]:
        return above
    both = {key for key in above if isinstance(below.get(key), dict) and isinstance(above[key], dict)}
    return {**below, **{key: _merge(below[key], above[key]) if key in both else above[key] for key in above}}


def _resolve(values: dict[str, Any], places: dict[str, str], where: str) -> dict[str, Any]:
    """`values` with every `${dotted.key}` replaced. Raises: ConfigError."""
    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise ConfigError(f"{place_of(key, places, where)}: {key}: {one_line(error)}") from error


def _validate(values: dict[str, Any], places: dict[str, str], where: str) -> Config:
    try:
        # As JSON, so that strict types still let a mapping become a dataclass and a list a tuple.
        return Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(explain(error, Config, values, places, where)) from error
    except ConfigError as error:
        raise ConfigError(f"{place_of(str(error).partition(':')[0], places, where)}: {error}") from error
