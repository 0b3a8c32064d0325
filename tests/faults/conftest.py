"""What the fault tests share, and the table of what they measured."""

import json
from pathlib import Path

import pytest
from faults.driver import Home, make_home, train

FIGURES: dict[str, str] = {}


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A model and rows, the same for all runs."""
    return make_home(tmp_path_factory.mktemp("faults") / "home")


@pytest.fixture(scope="session")
def whole(home):
    """A run that nothing happened to, on one device."""
    run = Home(home, home / "whole")
    started = train(run)
    assert started.wait() == [0], started.told()
    return run


@pytest.fixture
def measured(request):
    """Says what was measured, for the table at the end."""
    name = request.node.name.removeprefix("test_").partition("_")[0]
    return lambda text: FIGURES.setdefault(f"{name} {len(FIGURES)}", text)


def pytest_terminal_summary(terminalreporter):
    if not FIGURES:
        return
    terminalreporter.section("measured")
    for name, text in FIGURES.items():
        terminalreporter.line(f"{name.split()[0]:<4} {text}")
    file = Path("runs/faults.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(list(FIGURES.items()), indent=2))
