"""What the fault tests share, and the table of what they measured."""

import json
from pathlib import Path

import pytest
from faults.driver import Home, make_home, train


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
def measured(record_property):
    """Says what was measured, for the table at the end."""
    return lambda text: record_property("measured", text)


def pytest_terminal_summary(terminalreporter):
    figures = [
        (report.nodeid.partition("::test_")[2].partition("_")[0], text)
        for report in terminalreporter.stats.get("passed", ())
        for name, text in report.user_properties
        if name == "measured"
    ]
    if not figures:
        return
    terminalreporter.section("measured")
    for name, text in sorted(figures, key=lambda figure: (len(figure[0]), figure)):
        terminalreporter.line(f"{name:<4} {text}")
    file = Path("runs/faults.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(sorted(figures), indent=2))
