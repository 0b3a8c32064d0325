"""The commands that look at runs: `rdro report` and `rdro status`. They read files; jax is not imported."""

import argparse
import json
from pathlib import Path
from typing import Any

from rdro_jax.cli.parser import add_command


def add_report(commands: Any) -> None:
    """Add `rdro report`."""
    parser = add_command(
        commands,
        "report",
        _report,
        "write one HTML page about a run, or about several side by side",
        "rdro report runs/first runs/second --out comparison.html",
        "\nThe page holds everything in itself and opens from disk: curves, histograms, configs, data report, samples."
        "\nNeeds Bokeh: pip install 'rdro_jax[report]'. Works while a run goes on.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="output_dir of a run")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: RUN/report.html of the first run")


def _report(arguments: argparse.Namespace) -> None:
    from rdro_jax.report import write_report

    print(write_report(arguments.runs, arguments.out or arguments.runs[0] / "report.html"))


def add_status(commands: Any) -> None:
    """Add `rdro status`."""
    parser = add_command(
        commands,
        "status",
        _status,
        "tell how runs are doing, from their files",
        "rdro status runs/first",
        "\n--json prints one JSON object per run. NO_COLOR is honoured.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="output_dir of a run")
    parser.add_argument("--json", action="store_true", help="JSON lines, for machines")


def _status(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from rdro_jax.report.status import read_status, status_table

    for folder in arguments.runs:
        status = read_status(folder)
        if arguments.json:
            print(json.dumps(status._asdict()))
        else:
            Console().print(status_table(status))
