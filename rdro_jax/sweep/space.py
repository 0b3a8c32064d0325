"""What a sweep varies: keys with their domains, keys of one loss only, and the points of the space."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from rdro_jax.errors import ConfigError

Point = dict[str, Any]
"""Dotted config key -> value."""
KINDS = ("choice", "range", "log")
LOSS, LOSS_NAME = "loss", "loss.name"


class Domain(NamedTuple):
    """Values a key may take."""

    kind: str
    """choice: one of `values`; range, log: between its two `values`, both included."""
    values: tuple[Any, ...]
    step: float | None = None
    """Distance between the values of a range; null is every number (every whole one between whole ends)."""

    @property
    def whole(self) -> bool:
        """Whether it holds whole numbers only."""
        return all(type(value) is int for value in (*self.values, *filter(None, [self.step])))

    def grid(self) -> Sequence[Any] | None:
        """All values in order, of whole numbers without making them; None for a continuous domain."""
        if self.kind == "choice":
            return self.values
        if self.kind == "log" or not (self.whole or self.step):
            return None
        low, high = self.values
        if self.whole:
            return range(low, high + 1, self.step or 1)  # pyright: ignore[reportArgumentType]
        step = self.step or 1
        return tuple(low + i * step for i in range(math.floor((high - low) / step + 1e-9) + 1))

    def at(self, place: float) -> Any:
        """The value at a place of [0, 1): equal lengths of it are equally many values."""
        values = self.grid()
        if values is not None:
            return values[int(place * len(values))]
        low, high = self.values
        if self.kind == "range":
            digits = 3 - math.floor(math.log10(high - low))  # of the width: nobody tells closer values apart
            return min(max(round(low + place * (high - low), digits), low), high)
        # A whole number n stands for [n, n + 1), so that both ends are drawn.
        value = math.exp(math.log(low) + place * (math.log(high + self.whole) - math.log(low)))
        return min(int(value), high) if self.whole else min(max(float(f"{value:.4g}"), low), high)

    def suggest(self, trial: Any, name: str) -> Any:
        """What an Optuna trial says this value is."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.values)
        low, high = self.values
        if self.whole:
            return trial.suggest_int(name, low, high, step=self.step or 1, log=self.kind == "log")
        return trial.suggest_float(name, low, high, step=self.step, log=self.kind == "log")


class Space(NamedTuple):
    """The keys that every trial sets, and those that only trials of one loss set."""

    common: dict[str, Domain]
    losses: dict[str, dict[str, Domain]]
    """Loss name -> its own keys; empty where the sweep keeps one loss."""

    def branches(self) -> list[tuple[str | None, dict[str, Domain]]]:
        """Every loss with all keys its trials set."""
        if not self.losses:
            return [(None, self.common)]
        return [(name, {LOSS_NAME: Domain("choice", (name,))} | own | self.common) for name, own in self.losses.items()]

    def grid(self) -> list[Point]:
        """Every point. Raises: ConfigError naming a continuous key."""
        points = []
        for _, domains in self.branches():
            values = []
            for key, domain in domains.items():
                if domain.grid() is None:
                    raise ConfigError(f"space.{key}: a grid wants 'choice', whole numbers, or a 'step' beside 'range'")
                values.append(domain.grid())
            points += [dict(zip(domains, point, strict=True)) for point in product(*values)]
        return points

    @property
    def size(self) -> int | None:
        """Number of points; None where a key is continuous."""
        sizes = [[domain.grid() for domain in domains.values()] for _, domains in self.branches()]
        if any(values is None for branch in sizes for values in branch):
            return None
        return sum(math.prod(len(values) for values in branch if values is not None) for branch in sizes)

    def at(self, places: np.ndarray) -> Point:
        """The point at a place of the unit cube of `dimensions`."""
        number = int(places[0] * len(self.branches()))
        domains = self.branches()[number][1]
        return {key: domain.at(float(place)) for (key, domain), place in zip(domains.items(), places[1:], strict=False)}

    @property
    def dimensions(self) -> int:
        """Numbers that fix a point: which loss, and a value for each of its keys."""
        return 1 + max(len(domains) for _, domains in self.branches())

    def suggest(self, trial: Any) -> Point:
        """The point of an Optuna trial; `names` says under which names it knows the keys."""
        point: Point = {}
        if self.losses:
            point[LOSS_NAME] = trial.suggest_categorical(LOSS_NAME, tuple(self.losses))
        domains = self.losses.get(point.get(LOSS_NAME, ""), {}) | self.common
        return point | {key: domain.suggest(trial, self.names(point)[key]) for key, domain in domains.items()}

    def names(self, point: Mapping[str, Any]) -> dict[str, str]:
        """Key -> the name Optuna has for it: a key of one loss is another parameter than that of another loss."""
        loss = point.get(LOSS_NAME, "")
        own = self.losses.get(loss, {})
        keys = [*([LOSS_NAME] if self.losses else []), *own, *self.common]
        return {key: f"{LOSS}[{loss}]{key.removeprefix(LOSS)}" if key in own else key for key in keys}

    def probes(self) -> Iterator[Point]:
        """Points that together show every choice and both ends of every range."""
        for _, domains in self.branches():
            first = {key: domain.values[0] for key, domain in domains.items()}
            yield first
            yield from (first | {key: value} for key, domain in domains.items() for value in domain.values[1:])


def read_space(values: Mapping[str, Any], losses: tuple[str, ...]) -> Space:
    """The section `space` of a sweep file. Raises: ConfigError beginning with the dotted key.

    >>> loss = {"rdro": {"alpha": {"choice": [0.3]}}, "sft": {}}
    >>> space = read_space({"seed": {"range": [0, 2]}, "loss": loss}, ("rdro", "sft"))
    >>> len(space.grid()), space.grid()[0]
    (6, {'loss.name': 'rdro', 'loss.alpha': 0.3, 'seed': 0})
    """
    section = values.get(LOSS)
    named = {name: own for name, own in section.items() if name in losses} if isinstance(section, dict) else {}
    if named and isinstance(section, dict) and len(named) < len(section):
        other = next(name for name in section if name not in named)
        raise ConfigError(f"space.loss.{other}: stands beside '{next(iter(named))}' but is no loss; put it under one")
    rest = {key: value for key, value in values.items() if not (named and key == LOSS)}
    own = {name: dict(_domains(keys or {}, LOSS, f"space.loss.{name}")) for name, keys in named.items()}
    space = Space(dict(_domains(rest, "", "space")), own)
    if not space.common and not space.losses:
        raise ConfigError("space: empty; wanted keys such as optimizer: {learning_rate: {log: [1e-7, 1e-5]}}")
    return space


def _domains(values: Any, key: str, where: str) -> Iterator[tuple[str, Domain]]:
    """(dotted config key, domain) of every leaf below `values`."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: got {values!r}; wanted {{choice: [...]}}, {{range: [low, high]}} or a section")
    if set(values) & {*KINDS, "step"}:
        yield key, _domain(values, where)
        return
    for name, value in values.items():
        yield from _domains(value, f"{key}.{name}" if key else name, f"{where}.{name}")


def _domain(values: dict[str, Any], where: str) -> Domain:
    kinds = [kind for kind in KINDS if kind in values]
    unknown = [key for key in values if key not in (*KINDS, "step")]
    if len(kinds) != 1 or unknown:
        raise ConfigError(f"{where}: got {', '.join(values)}; wanted one of choice, range, log, and step with range")
    [kind], step = kinds, values.get("step")
    found = values[kind]
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where}.{kind}: got {found!r}; wanted a list of values")
    if kind == "choice":
        if any(isinstance(value, (list, dict)) for value in found):
            raise ConfigError(f"{where}.choice: wanted plain values, got a list or a section")
        if len({(type(value), value) for value in found}) < len(found):
            raise ConfigError(f"{where}.choice: the same value twice")
    elif len(found) != 2 or not all(_is_number(value) for value in found) or not found[0] < found[1]:
        raise ConfigError(f"{where}.{kind}: got {found}; wanted [low, high], two numbers")
    elif kind == "log" and found[0] <= 0:
        raise ConfigError(f"{where}.log: got {found}; wanted numbers above 0")
    if step is not None and (kind != "range" or not _is_number(step) or step <= 0):
        raise ConfigError(f"{where}.step: got {step!r}; wanted a number above 0, beside range")
    return Domain(kind, tuple(found), step)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
