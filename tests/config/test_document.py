"""A config file is input like any other: what it must not contain is refused with its line."""

import time

import pytest

from rdro_jax.config.document import read_document
from rdro_jax.config.loader import load_config
from rdro_jax.errors import ConfigError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)

REFUSED = {
    "": "c.yaml: empty; wanted lines such as 'output_dir: runs/first'",
    "# only a comment\n": "c.yaml: empty; wanted lines such as 'output_dir: runs/first'",
    "- a\n": "c.yaml: got a seq; wanted 'key: value' lines at the top level",
    "text\n": "c.yaml: got a text; wanted 'key: value' lines at the top level",
    "seed: 1\nseed: 2\n": "c.yaml:2: seed: said twice, first at c.yaml:1; keep one",
    "a: {on: 1, on: 2}\n": "c.yaml:1: on: said twice, first at c.yaml:1; keep one",
    "model.path: x\n": "c.yaml:1: got the key 'model.path'; wanted a single word, sections are nested",
    "? [a]\n: 1\n": "c.yaml:1: got the key 'seq'; wanted a single word, sections are nested",
    "a: &x {b: 1}\nc: {<<: *x}\n": "c.yaml:2: got the key '<<'; wanted a single word, sections are nested",
    "a: !!python/object/apply:os.system [ls]\n": (
        "c.yaml:1: got the tag '!!python/object/apply:os.system'; tags are not read, write a plain value"
    ),
    "a: !!python/object/apply:pathlib.Path [a]\n": (
        "c.yaml:1: got the tag '!!python/object/apply:pathlib.Path'; tags are not read, write a plain value"
    ),
    "a: !env HOME\n": "c.yaml:1: got the tag '!env'; tags are not read, write a plain value",
    "a: &x [*x]\n": "c.yaml:1: nested more than 32 levels deep",
    "a: " + "[" * 50 + "]" * 50: "c.yaml:1: nested more than 32 levels deep",
    "a: " + "[" * 100_000: "c.yaml: nested more than 32 levels deep",
    BOMB: "c.yaml: more than 10000 values, aliases expanded",
    "---\na: 1\n---\nb: 1\n": "c.yaml:3: not YAML: expected a single document in the stream but found another document",
    "a: b\x00": "c.yaml: not YAML: unacceptable character #x0000: special characters are not allowed",
    "a: \tb": "c.yaml:1: not YAML: while scanning for the next token found character '\\t' that cannot start any token",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:24]))
def test_refused_in_one_line_and_at_once(text):
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_document(text, "c.yaml")
    assert str(caught.value) == REFUSED[text]
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "a ${oc.env:HOME} b", "${${x}:HOME}", "${oc.decode:1}", "\\${x}", "${a b}", "${"]
)
def test_the_environment_cannot_be_read(value, monkeypatch):
    """The resolved config is written into the run folder: a secret read here would end up on disk."""
    monkeypatch.setenv("HOME", "canary")
    with pytest.raises(ConfigError, match=r"only \$\{dotted\.key\} is replaced") as caught:
        read_document(f"output_dir: '{value}'\n", "c.yaml")
    assert "canary" not in str(caught.value)


def test_aliases_within_bounds_are_read():
    assert read_document("a: &x {b: 1}\nc: *x\n", "c.yaml").values == {"a": {"b": 1}, "c": {"b": 1}}


def test_places_are_the_lines_of_the_keys():
    places = read_document("a:\n  b:\n    c: 1\n  d: 2\n", "c.yaml").places
    assert places == {"a": "c.yaml:1", "a.b": "c.yaml:2", "a.b.c": "c.yaml:3", "a.d": "c.yaml:4"}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(b"a: \xff\n", "not UTF-8 text"), (b"# " + b"x" * (1 << 20) + b"\n", "larger than 1 MiB"), (b"", "empty")],
)
def test_files_that_are_no_config(tmp_path, raw, reason):
    path = tmp_path / "c.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfsede: 1\n")
    with pytest.raises(ConfigError, match="sede: unknown key; did you mean 'seed'"):
        load_config(path)
