"""`rdro plan`: whether a run fits a machine, before there is one."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rdro_jax.cli.parser import add_command, add_config
from rdro_jax.errors import ConfigError, StorageError


def add_plan(commands: Any) -> None:
    """Add `rdro plan`."""
    parser = add_command(
        commands,
        "plan",
        _plan,
        "compile the train step of a config for a machine that is not here: what fits, what goes where, how fast",
        "rdro plan configs/rdro.yaml model.path=configs/models/llama-3.1-8b.yaml --topology v5e:4x4",
        "\nNeeds no weights and no accelerator: model.path is a preset of configs/models or a folder with config.json."
        "\nTPU slices are compiled by libtpu (pip install 'rdro_jax[plan]'), gpu:8xh100 by XLA's GPU compiler"
        "\n(docs/scaling.md), cpu:8 by the CPU's. Exit code 2: it does not fit, or does not divide.",
    )
    add_config(parser)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        action="append",
        required=True,
        help="v5e:4x4, 2xv5e:4x4, gpu:8xh100, cpu:8; repeat",
    )
    parser.add_argument("--estimate", action="store_true", help="count instead of compiling: seconds, good to a tenth")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures of all topologies, as a JSON list")


def _plan(arguments: argparse.Namespace) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # a plan touches no accelerator, and must not wait for one
    from rdro_jax.config import load_config
    from rdro_jax.plan import advise, as_json, make_plan, missing_compiler, parse_topology, tell, verdict

    config = load_config(arguments.config, arguments.overrides)
    topologies = [parse_topology(name) for name in arguments.topology]
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise StorageError(f"--json: no folder '{arguments.json.parent}'; make it first")
    plans = []
    for topology in topologies:
        missing = "" if arguments.estimate else missing_compiler(topology)
        if missing:
            print(f"{missing}; counted instead, good to a tenth", file=sys.stderr)
        plan = make_plan(config, topology, compiling=not (arguments.estimate or missing))
        plans.append(plan)
        print("\n".join(tell(plan)), verdict(plan), sep="\n", end="\n\n", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([as_json(plan) for plan in plans], indent=1) + "\n")
    failed = [f"{verdict(plan)}; {advise(plan)}" for plan in plans if not plan.fits]
    if failed:
        raise ConfigError("\n".join(failed))
