"""Runs of a sweep once more, nobody killing them: `left_alone.py SCRATCH RUN ...`, in JSON which of them ended alike.

In one process, which imports once. Compared are state, metrics and weights, as of runs with injected faults.
"""

import json
import shutil
import sys
from pathlib import Path

from rdro_jax.config import load_config
from rdro_jax.train import train


def ends_alike(run: Path, scratch: Path) -> bool:
    """Whether the run, anew in a folder of its own, gives what it gave."""
    from driver import same  # found where this is a script; what pytest reads is not to set the driver's environment

    train(load_config(run / "config.yaml", [f"output_dir={scratch}"]))
    alike = same(run, scratch)
    shutil.rmtree(scratch)
    return alike


if __name__ == "__main__":
    scratch, *runs = sys.argv[1:]
    print(json.dumps({run: ends_alike(Path(run), Path(scratch)) for run in runs}))
