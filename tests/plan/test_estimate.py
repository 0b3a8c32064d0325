"""The estimate beside what compilers said: docs/plans.json keeps their figures, `make plans` makes them."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.plans import table
from rdro_jax.config import load_config
from rdro_jax.plan import make_plan, parse_topology

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "docs" / "plans.json").read_text())
COMPILED = [name for name, figures in RECORD.items() if figures.get("compiled")]


def test_the_table_of_the_scaling_page_is_the_record():
    assert "\n".join(table(RECORD)) in (ROOT / "docs" / "scaling.md").read_text()


def planned(arguments: str):
    """The estimate of a recorded command."""
    _, file, *words = arguments.split()
    overrides = [word for word in words if "=" in word]
    overrides = [word.replace("=configs/", f"={ROOT}/configs/") for word in overrides]
    return make_plan(load_config(ROOT / file, overrides), parse_topology(words[-1]), compiling=False)


def test_several_machines_and_models_were_compiled():
    assert len({(RECORD[name]["model"], RECORD[name]["topology"]) for name in COMPILED}) >= 6


@pytest.mark.parametrize("name", COMPILED)
def test_the_estimate_is_within_a_tenth_of_the_compiler(name):
    recorded = RECORD[name]
    plan = planned(recorded["arguments"])
    assert plan.needed == pytest.approx(recorded["peak_bytes"], rel=0.1)
    state = plan.parts.parameters + plan.parts.optimizer + plan.parts.frozen + plan.parts.batch
    # Counted, not estimated: compilers pad each array to their tiles, by a hundredth at the most.
    assert state == pytest.approx(recorded["compiled"]["arguments"], rel=0.01)


@pytest.mark.parametrize("name", [name for name in RECORD if RECORD[name].get("peak_bytes") and name not in COMPILED])
def test_what_a_compiler_refused_the_estimate_refuses(name):
    assert not planned(RECORD[name]["arguments"]).fits


def test_an_estimate_is_there_in_five_seconds():
    """Of CPU time, from the start of the process: what else the machine does is not ours to measure."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = "import sys; from rdro_jax.cli import main; sys.exit(main())"
    preset = "model.path=configs/models/llama-3.1-8b.yaml"
    words = ["plan", "configs/rdro.yaml", preset, "--topology", "v5e:4x4", "--estimate"]
    subprocess.run([sys.executable, "-c", run, *words], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
