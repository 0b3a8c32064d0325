"""What the pages of docs/ say is held to the code: names, messages, examples, command lines."""

import ast
import dataclasses
import doctest
import re
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest

from rdro_jax import errors
from rdro_jax.cli.entry import parse
from rdro_jax.config import load_config
from rdro_jax.errors import ConfigError
from rdro_jax.losses import Loss

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
TROUBLES = re.findall(r"^\| `(.+?)` \| (\d+) \|", TEXTS["docs/troubleshooting.md"], re.M)


def commands_of(text: str) -> list[str]:
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def text_of(node: ast.AST) -> str | None:
    """A string of the source, `…` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@pytest.fixture(scope="module")
def messages() -> list[tuple[str, str | None]]:
    """Every string of the package, and the error that is raised with it where it stands in a `raise`."""
    found = []
    for path in (ROOT / "rdro_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args:
                found.append((text_of(call.args[0]), call.func.id))
            found.append((text_of(node), None))
    return [(text, error) for text, error in found if text]


def test_quoted_messages_are_those_of_the_code(messages):
    assert len(TROUBLES) > 40
    for quoted, code in TROUBLES:
        wanted = quoted.replace("\\|", "|")
        raised = [error for text, error in messages if wanted in text]
        assert raised, quoted
        codes = {getattr(errors, error).exit_code for error in raised if hasattr(errors, error or "")}
        assert not codes or int(code) in codes, quoted


def test_keys_beside_trl_exist():
    keys = set(re.findall(r"^\|[^|]*\| `([a-z_.0-9]+)` \|", TEXTS["docs/trl.md"], re.M))
    of_losses = {f"loss.{field.name}" for loss in get_args(Loss) for field in dataclasses.fields(loss)}
    assert len(keys) > 45
    assert {key for key in keys if key.startswith("loss.")} <= of_losses
    # Each is refused the made-up value; one that does not exist would be refused first, for being unknown.
    with pytest.raises(ConfigError, match="wanted") as refused:
        load_config(ROOT / "configs" / "rdro.yaml", [f"{key}={{odd: 1}}" for key in sorted(keys - of_losses)])
    assert "unknown key" not in str(refused.value)


def test_the_file_beside_trl_loads(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    [example] = re.findall(r"^```yaml\n(.*?)^```", TEXTS["docs/trl.md"], re.M | re.S)
    (tmp_path / "kto.yaml").write_text(example)
    config = load_config(tmp_path / "kto.yaml")
    assert (config.loss.name, config.loss.beta, config.optimizer.learning_rate) == ("kto", 0.1, 1e-6)


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if ">>> " in text])
def test_examples_of_pages_run(page):
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert tried
    assert not failed


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if "rdro " in " ".join(commands_of(text))])
def test_command_lines_are_understood(page):
    for command in commands_of(TEXTS[page]):
        program, *words = shlex.split(command, comments=True) or [""]
        if program == "rdro":
            assert parse(words).run, command


def inline_commands(text: str) -> list[str]:
    """What stands in backticks with at least one word of its own, a file or one in capitals for any."""
    spans = (" ".join(span.split()) for span in re.findall(r"`(rdro (?!error)[^`]+)`", text))
    return [
        span for span in spans if " ... " not in span and re.match(r"rdro [a-z][\w-]*( \S+)* \S*([/.]|[A-Z]{2})", span)
    ]


def test_commands_within_a_line_are_understood():
    pages = {page: text for page, text in TEXTS.items() if page != "docs/changelog.md"}  # names options by themselves
    found = [command for text in pages.values() for command in inline_commands(text)]
    assert len(found) > 12
    for command in found:
        assert parse(shlex.split(command.removesuffix("..."))[1:]).run, command


HEADERS = {path: path.read_text() for path in sorted((ROOT / "configs").rglob("*.yaml"))}
HEADERS = {path: text for path, text in HEADERS.items() if "# Command:" in text}


def header_commands(text: str) -> list[str]:
    """Lines from `# Command:` to the next word with a colon; two blanks part a command from what is said of it."""
    block = re.search(r"^# Command:(.*?)^(?!#  )", text, re.M | re.S).group(1)
    lines = [re.split(r"  |, then | > ", line.lstrip("# ")) for line in block.splitlines()]
    return [part for parts in lines for part in parts if part.startswith(("rdro ", "make "))]


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_recipe_headers_are_understood(path):
    commands = header_commands(HEADERS[path])
    assert commands
    for command in commands:
        program, *words = shlex.split(command)
        if program == "rdro":
            assert parse(words).run, command
        named = [word for word in words if word.startswith("configs/")]
        assert all((ROOT / word).is_file() for word in named), command


def test_links_to_other_projects_are_pinned():
    """To a commit or a release: a line of a branch shows something else tomorrow."""
    links = re.findall(r"^\[[\w-]+\]: (\S+)$", TEXTS["docs/comparison.md"], re.M)
    assert len(links) > 30
    assert [link for link in links if not re.search(r"/(blob|tree)/([0-9a-f]{40}|v[\d.]+)/|/v[\d.]+/", link)] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = [line for text in TEXTS.values() for line in commands_of(text)]
    lines += [span for text in TEXTS.values() for span in re.findall(r"`(make [^`]+)`", text)]
    lines += [command for text in HEADERS.values() for command in header_commands(text)]
    asked = {found.group(1) for found in map(re.compile(r"make ([a-z-]+)").match, lines) if found}
    assert len(asked) > 15
    assert asked <= targets


def test_files_named_by_pages_exist():
    named = {
        file for text in TEXTS.values() for file in re.findall(r"`((?:tests|benchmarks|configs)/[\w./-]+\.\w+)", text)
    }
    assert len(named) > 20
    assert {file for file in named if not (ROOT / file).is_file()} == set()
