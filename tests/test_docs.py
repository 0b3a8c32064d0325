"""What the documents say about the repository is compared with the repository."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ROOT / "rdro_jax"
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


def requirement_names(requirements: list[str]) -> set[str]:
    names = {re.match(r"[\w.-]+", requirement).group().lower() for requirement in requirements}
    return names - {"rdro_jax"}


def pins(file: str) -> dict[str, str]:
    """Package -> version of a file of constraints."""
    return dict(line.lower().split("==") for line in (ROOT / file).read_text().split())


def test_dependencies_are_explained():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    explained = set(re.findall(r"[\w.-]+", text.lower()))
    extras = [requirement for group in PROJECT["project"]["optional-dependencies"].values() for requirement in group]
    assert requirement_names(PROJECT["project"]["dependencies"] + extras) <= explained


def test_explained_versions_are_the_constrained_ones():
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \|", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
    assert len(rows) > 10
    for name, version in rows:
        assert pins("constraints.txt")[name].startswith(version), name


@pytest.mark.parametrize(("file", "python"), [("constraints.txt", "3.11"), ("constraints-3.12.txt", "3.12")])
def test_what_is_tested_is_within_the_bounds(file, python):
    asked = map(Requirement, PROJECT["project"]["dependencies"])
    asked = [need for need in asked if need.marker is None or need.marker.evaluate({"python_version": python})]
    assert {"jax", "flax"} <= {need.name for need in asked}
    wanted, had = pins("constraints.txt"), pins(file)
    assert wanted.keys() == had.keys()
    assert all(need.specifier.contains(had[need.name.lower()]) for need in asked)
    differ = {name for name in had if had[name] != wanted[name]}
    assert differ == (set() if python == "3.11" else {"jax", "jaxlib", "flax", "libtpu"})


def test_run_time_imports_are_declared():
    """Every third-party package that the code imports is one the project asks for."""
    other_names = {"yaml": "pyyaml", "orbax": "orbax-checkpoint", "lm_eval": "lm-eval"}
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = requirement_names([*PROJECT["project"]["dependencies"], *chain.from_iterable(extras)])
    undeclared = {}
    for path in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^ *(?:from|import) ([A-Za-z_][A-Za-z_0-9]*)", path.read_text(), re.M):
            if name not in sys.stdlib_module_names | {"rdro_jax"} and other_names.get(name, name.lower()) not in asked:
                undeclared[name] = str(path.relative_to(ROOT))
    assert undeclared == {}


def test_version_is_the_same_everywhere():
    version = PROJECT["project"]["version"]
    released = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert released == (version, str(cited["date-released"]))
    assert cited["version"] == version


@pytest.mark.parametrize("page", ["changelog.md", "launch.md"])
def test_pages_written_elsewhere_are_links(page):
    """A copy would be read by the site and forgotten by whoever adds a line to the original."""
    assert (ROOT / "docs" / page).is_symlink()
    assert (ROOT / "docs" / page).is_file()


def test_the_package_says_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_design_names_the_layers_of_the_contract():
    design = (ROOT / "docs" / "design.md").read_text()
    [layers] = [contract["layers"] for contract in PROJECT["tool"]["importlinter"]["contracts"] if "layers" in contract]
    written = re.search(r"```layers\n(.*?)```", design, re.S).group(1).split("\n")
    assert [line.strip() for line in written if line.strip()] == [layer.replace("rdro_jax.", "") for layer in layers]


@pytest.mark.parametrize("path", re.findall(r"`rdro_jax/([\w/]+\.py)`", (ROOT / "docs" / "design.md").read_text()))
def test_files_named_by_the_design_exist(path):
    assert (PACKAGE / path).is_file()


def test_nothing_can_load_a_pickle():
    """Weights and states are data: no format that runs code when it is read."""
    words = "|".join(
        [
            "pic" + "kle",
            r"torch\.load",
            "job" + "lib",
            r"yaml\.(unsafe_)?load\(",
            r"yaml\.full_load",
            "allow_pic" + "kle",
        ]
    )
    guilty = [str(path) for path in PACKAGE.rglob("*.py") if re.search(words, path.read_text())]
    assert guilty == []


def test_code_of_a_model_folder_is_refused_wherever_transformers_reads_one():
    """Each `from_pretrained` of a class that picks code by the folder says no."""
    calls = [call for path in PACKAGE.rglob("*.py") for call in re.findall(r"Auto\w+\.from_\w+\(.*", path.read_text())]
    assert calls
    assert [call for call in calls if "trust_remote_code=False" not in call] == []


@pytest.mark.parametrize("place", sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", RELIABILITY))))
def test_tests_named_by_the_reliability_page_exist(place):
    file, _, name = place.partition("::")
    assert not name or f"def {name}(" in (ROOT / file).read_text()
    assert (ROOT / file).is_file()
