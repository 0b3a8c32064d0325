"""What a compiled program says between devices: its collectives, read from XLA's text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[^ (]+) \(.*{$")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%([^,\s)}]+)|branch_computations={([^}]*)}")
_LOOP = re.compile(r" while\(.*condition=%(?P<condition>[^,\s]+), body=%(?P<body>[^,\s]+)")
_TRIPS = re.compile(r'"known_trip_count":{"n":"(\d+)"}')
_BOUND = re.compile(r"[su]32\[\][^=]* constant\((\d+)\)")
_COUNTER = re.compile(r"[su]32\[\][^=]* get-tuple-element\(.*index=(\d+)")
_COLLECTIVE = re.compile(
    r"= (?P<shape>.+?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUP_LIST = re.compile(r"replica_groups={{([\d,]+)}")
_GROUP_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
_GROUP_MESH = re.compile(r"replica_groups=\w*mesh\[(?P<sizes>[^\]]*)\].*? {(?P<axes>'[^}]*)}")


class Traffic(NamedTuple):
    """Collectives of one kind in one run of a program."""

    places: int
    """Instructions in the program."""
    count: int
    """How often they run, loops counted."""
    sent: float
    """Bytes that each device sends in all of them, by the ring algorithm."""


def collectives(text: str) -> dict[str, Traffic]:
    """Kind -> traffic of an HLO module's text.

    A collective that is fused with the matrix product that reads or writes it appears as collective-permutes in a loop,
    as the compiler wrote it. An all-reduce of which only a slice is kept counts as the reduce-scatter it is.
    """
    bodies = _computations(text)
    runs = _runs(bodies)
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for name, lines in bodies.items():
        for number, line in enumerate(lines):
            match = _COLLECTIVE.search(line)
            if match is None or not runs[name]:
                continue
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match["kind"]
            channel = _CHANNEL.search(line)
            # The steps of an asynchronous collective share its channel: it is one.
            key = kind, channel[1] if channel else f"{name}:{number}"
            sent = _sent(match["kind"], kind, _bytes(match["shape"]), bool(match["start"]), _group_size(line))
            found[key] = max(found.get(key, (0, 0.0)), (runs[name], sent))
    return {kind: _total([seen for (of, _), seen in found.items() if of == kind]) for kind, _ in sorted(found)}


def _total(seen: list[tuple[int, float]]) -> Traffic:
    return Traffic(len(seen), sum(count for count, _ in seen), sum(count * sent for count, sent in seen))


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of every computation; the entry under the name ENTRY."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = bodies.setdefault("ENTRY" if head["entry"] else head["name"], [])
        elif line.startswith("  "):
            lines.append(line)
    return bodies


def _runs(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    calls = {name: list(_callees(lines, bodies)) for name, lines in bodies.items()}
    runs: dict[str, int] = defaultdict(int)
    waiting = [("ENTRY", 1)]
    while waiting:
        name, times = waiting.pop()
        # Not added up: what is called from two places is the same collective twice only if its channel differs.
        if times > runs[name]:
            runs[name] = times
            waiting += [(callee, times * count) for callee, count in calls.get(name, [])]
    return runs


def _callees(lines: list[str], bodies: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in lines:
        loop = _LOOP.search(line)
        if loop:
            body = bodies.get(loop["body"], [])
            yield loop["body"], _trips(line, bodies.get(loop["condition"], []), body)
            continue
        for one, several in _CALLS.findall(line):
            yield from ((name.strip().lstrip("%"), 1) for name in (several.split(",") if several else [one]))


def _trips(line: str, condition: list[str], body: list[str]) -> int:
    """Runs of a loop's body: as the compiler noted, else until its counter has passed the bound it is compared with."""
    noted = _TRIPS.search(line)
    if noted:
        return int(noted[1])
    bounds = [int(found[1]) for found in map(_BOUND.search, condition) if found]
    counters = [int(found[1]) for found in map(_COUNTER.search, condition) if found]
    return -(-max(bounds, default=1) // (_stride(body, counters[0]) if counters else 1))


def _stride(body: list[str], counter: int) -> int:
    """What one run of a loop's body adds to the element `counter` of its state; 1 where it is not written plainly."""
    root = next((line for line in body if line.startswith("  ROOT ")), "")
    defined = {line.split(" = ", 1)[0].strip().removeprefix("ROOT "): line for line in body if " = " in line}
    state = re.findall(r"%[^\s,()]+", root.rpartition(" tuple(")[2].partition(")")[0])
    added = defined.get(state[counter], "") if counter < len(state) else ""
    terms = re.findall(r"%[^\s,()]+", added.partition(" add(")[2].partition(")")[0])
    strides = [int(found[1]) for found in (_BOUND.search(defined.get(term, "")) for term in terms) if found]
    return max(strides, default=1) or 1


def _bytes(shape: str) -> float:
    # A lone u32 is the handle of an asynchronous start, not what it sends.
    sizes = ((BYTES.get(kind, 0), dims) for kind, dims in _ARRAY.findall(shape) if (kind, dims) != ("u32", ""))
    return sum(size * math.prod(int(n) for n in dims.split(",") if n) for size, dims in sizes)


def _sent(written: str, kind: str, size: float, start: bool, group: int) -> float:
    """Bytes a device sends over a ring of `group`, where `size` is that of the instruction's result.

    An asynchronous start returns its operands beside its results.
    """
    if written == "collective-permute":
        return size / 2 if start else size
    if group < 2:
        return 0.0
    if written == "all-gather":
        return size * (group - 1) / (group + 1) if start else size * (group - 1) / group
    if written == "reduce-scatter":
        return size * (group - 1) / (group + 1) if start else size * (group - 1)
    once = size * (group - 1) / group
    return once if kind in ("reduce-scatter", "all-to-all") else 2 * once


def _group_size(line: str) -> int:
    """Devices among which a collective works."""
    if listed := _GROUP_LIST.search(line):
        return listed[1].count(",") + 1
    if iota := _GROUP_IOTA.search(line):
        return int(iota[2])
    if mesh := _GROUP_MESH.search(line):
        sizes = {axis.strip(): int(size) for axis, size in (part.split("=") for part in mesh["sizes"].split(","))}
        return math.prod(sizes[axis.strip()] for axis in mesh["axes"].split(",") if axis.strip())
    return 1
