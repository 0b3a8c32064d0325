"""`rdro sweep`: many runs from one file."""

import argparse
from typing import Any

from rdro_jax.cli.parser import add_command


def add_sweep(commands: Any) -> None:
    """Add `rdro sweep`."""
    parser = add_command(
        commands,
        "sweep",
        _sweep,
        "run the trials a sweep file describes, or go on with them",
        "rdro sweep configs/sweeps/losses.yaml",
        "\nThe same command again resumes. Ends with report.html, results.jsonl, results.csv and best.yaml in the"
        "\nsweep's output_dir. Trials are runs of `rdro train`: here, as SLURM jobs or through SkyPilot.",
    )
    parser.add_argument("file", metavar="FILE", help="YAML file, for example configs/sweeps/losses.yaml")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the command of every run and exit")
    what.add_argument("--status", action="store_true", help="show the trials of a sweep, also while it goes on")
    what.add_argument("--retry-failed", action="store_true", help="try failed trials again, from their checkpoints")


def _sweep(arguments: argparse.Namespace) -> None:
    if arguments.status:
        from rdro_jax.sweep.status import show_status

        show_status(arguments.file)
        return
    if arguments.dry_run:
        from rdro_jax.sweep.points import dry_run

        for line in dry_run(arguments.file):
            print(line)
        return
    from rdro_jax.sweep.run import run

    print(run(arguments.file, retry_failed=arguments.retry_failed))
