"""`rdro doctor`: what would keep a run from starting, asked in seconds and without loading a model."""

import argparse
from typing import Any

from rdro_jax.cli.parser import add_command


def add_doctor(commands: Any) -> None:
    """Add `rdro doctor`."""
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        "look for what would keep a run from starting",
        "rdro doctor configs/rdro.yaml model.path=models/base data.train=train.jsonl output_dir=runs/first",
        "\nVersions, devices and secrets (by name); with a config also model, data, layout on the devices and room on"
        "\nthe disk. `rdro train` asks the same before it loads a model. The exit code is that of the first fault.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file of the run to ask about")
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="keys to set: loss.alpha=0.3")


def _bytes_needed(config: Any, policy: Any) -> int:
    import jax

    from rdro_jax.plan.estimate import estimate, plan_state

    state = plan_state(config, policy.model, policy.mesh)
    return estimate(config, policy.model, jax.default_backend(), policy.mesh, *state).peak


def ask_first(config: Any) -> None:
    """Ask the same at the start of a run, and tell what `train` does not tell itself. Raises: the first fault."""
    import jax

    from rdro_jax.parallel import from_first
    from rdro_jax.train.console import say
    from rdro_jax.train.preflight import examine

    def ask() -> None:
        findings = list(examine(config, _bytes_needed))
        for finding in findings:
            if finding.fault is not None:
                raise finding.fault
        for finding in findings:
            if finding.question in ("devices", "secrets", "memory"):
                say(f"{finding.question}: {finding.answer}")

    jax.devices()  # of several processes each waits here for the others to tell theirs
    from_first(ask)


def _doctor(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rdro_jax.config import load_config

    config = None if arguments.config is None else load_config(arguments.config, arguments.overrides)
    from rdro_jax.train.preflight import examine

    findings = list(examine(config, _bytes_needed))
    table = Table("", "", "", box=None, show_header=False)
    for finding in findings:
        mark, colour = ("fault", "red") if finding.fault else ("look", "yellow") if finding.warning else ("ok", "green")
        table.add_row(Text(mark, style=colour), finding.question, Text(finding.answer.removeprefix("warning: ")))
    Console().print(table)
    for finding in findings:
        if finding.fault is not None:
            raise finding.fault
