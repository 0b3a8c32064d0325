"""What the fault tests share, and the table of what they measured."""

import json
import time
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


BAR = 900.0
"""Seconds that the whole set may take on two cores."""
BEGAN = time.monotonic()


def took_too_long(config):
    """Seconds since the start where the whole set was asked for and they are beyond the bar; else None."""
    whole = config.option.markexpr == "faults" and not config.option.keyword
    seconds = time.monotonic() - BEGAN
    return seconds if whole and seconds > BAR else None


def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput") and took_too_long(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    figures = [
        (report.nodeid.partition("::test_")[2].partition("_")[0], text)
        for report in terminalreporter.stats.get("passed", ())
        for name, text in report.user_properties
        if name == "measured"
    ]
    if not figures:
        return
    terminalreporter.section("measured")
    for name, text in in_order(figures):
        terminalreporter.line(f"{name:<4} {text}")
    terminalreporter.line(f"in {time.monotonic() - BEGAN:.0f} s")
    if seconds := took_too_long(config):
        terminalreporter.line(f"the whole set took {seconds:.0f} s; wanted {BAR:.0f}", red=True)
    file = Path("runs/faults.json")
    file.parent.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else []
    new = {name for name, _ in figures}
    others = [(name, text) for name, text in known if name not in new]
    file.write_text(json.dumps(in_order([*others, *figures]), indent=2))


def in_order(figures):
    """By the number of the fault."""
    return sorted(figures, key=lambda figure: (len(figure[0]), figure))
