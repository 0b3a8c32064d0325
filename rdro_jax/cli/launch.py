"""`rdro launch`: a run on a cluster or a cloud."""

import argparse
from typing import Any

from rdro_jax.cli.parser import add_command, add_config

ENGINES = ("slurm", "gke", "sky", "tpu-vm")


def add_launch(commands: Any) -> None:
    """Add `rdro launch`."""
    parser = add_command(
        commands,
        "launch",
        _launch,
        "start a run on SLURM, Kubernetes, any cloud through SkyPilot, or Cloud TPU VMs",
        "rdro launch slurm configs/rdro.yaml model.path=models/sft --dry-run",
        "\nWhat is asked for stands in a small cluster file. The run is restarted after preemption (code 42) and after"
        "\ndeaths by a signal, never after codes 2 to 6. A sweep becomes a job array (slurm) or a trial's task (sky).",
    )
    parser.add_argument("engine", metavar="ENGINE", choices=ENGINES, help=", ".join(ENGINES))
    add_config(parser)
    parser.add_argument("--cluster", metavar="FILE", help="cluster file (default: configs/clusters/ENGINE.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and exit")


def _launch(arguments: argparse.Namespace) -> None:
    import shlex

    from rdro_jax.launch import launch

    words, cluster = arguments.overrides, arguments.cluster
    done = launch(arguments.engine, arguments.config, words, cluster_file=cluster, dry_run=arguments.dry_run)
    if isinstance(done, dict):
        for path, text in done.items():
            print(f"### {path}\n{text}")
    else:
        print(shlex.join(done))
