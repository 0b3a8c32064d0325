"""Compile the plans that docs/scaling.md and launch/README.md speak of, one process each: `make plans`.

    python -m benchmarks.plans [NAME ...]

Without names: those that are not in docs/plans.json yet. A compile takes half a minute to several minutes. Estimates
beside the compiled figures are made anew for all.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rdro_jax.config import load_config
from rdro_jax.launch import load_cluster
from rdro_jax.plan import Plan, make_plan, parse_topology

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "plans.json"
"""Every figure of every plan."""
CLUSTERS = ROOT / "configs" / "clusters"
GPU_LIBRARIES = ROOT / ".plans" / "gpu"
"""XLA's GPU compiler and the libraries it asks, beside the environment: in it they would replace jax's own platform."""

RDRO = "import sys; from rdro_jax.cli import main; sys.exit(main())"


class Case(NamedTuple):
    """One plan: a preset, a machine, and what is set beyond configs/rdro.yaml."""

    model: str
    topology: str
    overrides: tuple[str, ...] = ()


MACHINES = {
    "v5e-16": ("gke-tpu",),
    "2 x v5e-16": ("gke-tpu-multislice",),
    "v5p-64": ("gke-v5p",),
    "v6e-8": ("sky-tpu-spot", "tpu-vm"),
    "8 x H100": ("sky", "slurm"),
    "2 x 8 H100": ("gke-gpu",),
    "one 80 GB GPU": ("sky-lora",),
    "CPU, 16 cores, 32 GB": ("slurm-cpu",),
}
"""Machine -> files of configs/clusters for it; those of one machine have the same settings."""


def on_cluster(file: str) -> Case:
    """The plan of configs/rdro.yaml with the settings of a cluster file, for the largest model they are meant for."""
    cluster = load_cluster(CLUSTERS / f"{file}.yaml")
    assert cluster.topology_to_plan is not None
    model = "qwen2.5-0.5b" if cluster.topology_to_plan.startswith("cpu:") else "llama-3.1-8b"
    return Case(model, cluster.topology_to_plan, tuple(cluster.settings))


CUDNN = "model.attention=cudnn"
LORA = ("model.lora.r=16", "model.dtype=bfloat16")
CASES = {
    "8b-v5e-16": Case("llama-3.1-8b", "v5e:4x4", ("global_batch_size=64",)),
    "8b-v5e-16-one-row": Case("llama-3.1-8b", "v5e:4x4", ("global_batch_size=16",)),
    "8b-v5e-256": Case("llama-3.1-8b", "v5e:16x16", ("global_batch_size=256",)),
    "8b-32k-v5e-16": Case(
        "llama-3.1-8b",
        "v5e:4x4",
        ("global_batch_size=4", "data.max_length=32768", "mesh.fsdp=4", "mesh.context=4"),
    ),
    "8b-h100-8": Case("llama-3.1-8b", "gpu:8xh100", ("global_batch_size=8",)),
    "8b-h100-8-cudnn": Case("llama-3.1-8b", "gpu:8xh100", ("global_batch_size=8", CUDNN)),
    "8b-h100-8-cudnn-64": Case("llama-3.1-8b", "gpu:8xh100", ("global_batch_size=64", CUDNN)),
    "8b-lora-v5e-4": Case("llama-3.1-8b", "v5e:2x2", ("global_batch_size=8", *LORA)),
    "8b-v5e-4": Case("llama-3.1-8b", "v5e:2x2", ("global_batch_size=8",)),
    "7b-tensor-v5e-16": Case("qwen2.5-7b", "v5e:4x4", ("global_batch_size=16", "mesh.fsdp=4", "mesh.tensor=4")),
    "7b-tensor-8": Case("qwen2.5-7b", "v5e:4x4", ("global_batch_size=16", "mesh.fsdp=2", "mesh.tensor=8")),
    "7b-tensor-h100-8": Case(
        "qwen2.5-7b", "gpu:8xh100", ("global_batch_size=8", "mesh.fsdp=2", "mesh.tensor=4", CUDNN)
    ),
    "14b-h100-8": Case("qwen3-14b", "gpu:8xh100", ("global_batch_size=16", CUDNN)),
    "3b-a100-4": Case("llama-3.2-3b", "gpu:4xa100", ("global_batch_size=16", CUDNN)),
    "70b-v5p-32": Case("llama-3.1-70b", "v5p:2x4x4", ("global_batch_size=64",)),
    "70b-lora-h100-8": Case("llama-3.1-70b", "gpu:8xh100", ("global_batch_size=16", CUDNN, *LORA)),
    "8b-h100-8-dots": Case("llama-3.1-8b", "gpu:8xh100", ("model.remat=dots",)),
    "8b-h100-8-named": Case("llama-3.1-8b", "gpu:8xh100", ("num_microbatches=4", "model.remat=named")),
    "8b-h100-8-none": Case("llama-3.1-8b", "gpu:8xh100", ("num_microbatches=4", "model.remat=none")),
    "8b-lora-h100-1": Case("llama-3.1-8b", "gpu:1xh100", ("num_microbatches=8", *LORA)),
    "1.5b-h100-1": Case("qwen2.5-1.5b", "gpu:1xh100", ("num_microbatches=4",)),
    **{files[0]: on_cluster(files[0]) for files in MACHINES.values()},
}


def main(names: list[str]) -> None:
    """Compile the cases called `names`, or all that are missing, and write each one's figures down as it comes."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in names or [name for name in CASES if name not in record]:
        print(f"{name}: {' '.join(arguments(CASES[name]))}", flush=True)
        record[name] = run(CASES[name])
        write(record)
    for figures in record.values():
        if "estimate" in figures:
            parts = planned(figures).parts
            figures["estimate"] = parts._asdict() | {"peak": parts.peak}
    write(record)
    print("\n".join([*table(record), "", *machines(record)]))


def write(record: dict[str, Any]) -> None:
    """Write the record, in the order of the cases."""
    ordered = {name: record[name] for name in CASES if name in record}
    RECORD.write_text(json.dumps(ordered, indent=1) + "\n")


def planned(figures: dict[str, Any]) -> Plan:
    """The plan of a recorded command as the estimate is today."""
    _, file, *words = figures["arguments"].split()
    overrides = [word.replace("=configs/", f"={ROOT}/configs/") for word in words if "=" in word]
    return make_plan(load_config(ROOT / file, overrides), parse_topology(words[-1]), compiling=False)


def table(record: dict[str, Any]) -> list[str]:
    """The record as the table of docs/scaling.md."""
    titles = "model", "devices", "set beyond configs/rdro.yaml", "peak GiB", "of", "estimate", "sent GiB", "MFU bound"
    return [f"| {' | '.join(titles)} |", "|---|---|---|---|---|---|---|---|", *map(_row, CASES, map(record.get, CASES))]


def _row(name: str, figures: dict[str, Any] | None) -> str:
    case = CASES[name]
    cells = [case.model, case.topology, _code(case.overrides)]
    if figures is None or "peak_bytes" not in figures:
        return f"| {' | '.join([*cells, (figures or {}).get('error', 'not compiled'), *[''] * 4])} |"
    compiled, memory = figures["compiled"], figures["memory_bytes"]
    sent = _gib(sum(kind["sent"] for kind in compiled["collectives"].values())) if compiled else ""
    peak = _gib(figures["peak_bytes"]) if compiled else f"{_gib(figures['peak_bytes'])}, refused"
    bound = f"{figures['mfu_bound']:.0%}" if figures["mfu_bound"] and compiled else ""
    cells += [peak, _gib(memory) if memory else "", _gib(figures["estimate"]["peak"]), sent, bound]
    return f"| {' | '.join(cells)} |"


def machines(record: dict[str, Any]) -> list[str]:
    """The record of the cluster files as the table of launch/README.md."""
    titles = "machine", "cluster file", "settings", "model", "peak GiB, estimate", "compiled", "of"
    rows = [_machine(name, record[files[0]]) for name, files in MACHINES.items()]
    last = "device-hours of 1,000 steps, at least"
    return [f"| {' | '.join([*titles, last])} |", "|---|---|---|---|---|---|---|---|", *rows]


def _machine(name: str, figures: dict[str, Any]) -> str:
    files = MACHINES[name]
    case = CASES[files[0]]
    memory = figures["memory_bytes"] or load_cluster(CLUSTERS / f"{files[0]}.yaml").memory_gb * 1e9
    named, settings = (_code(words) for words in ([f"{file}.yaml" for file in files], case.overrides))
    sizes = map(_gib, (figures["estimate"]["peak"], figures["peak_bytes"], memory))
    seconds = max(value or 0 for value in figures["seconds"].values())  # none where no peak is published: a CPU
    hours = f"{1000 * seconds * figures['devices'] / 3600:.2f}" if seconds else "not known"
    return f"| {' | '.join([name, named, settings, case.model, *sizes, hours])} |"


def _code(words: Iterable[str]) -> str:
    return " ".join(f"`{word}`" for word in words)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def arguments(case: Case) -> list[str]:
    """The command line of a case, from the root of a checkout."""
    preset = f"model.path=configs/models/{case.model}.yaml"
    return ["plan", "configs/rdro.yaml", preset, *case.overrides, "--topology", case.topology]


def run(case: Case) -> dict[str, Any]:
    """The figures of one case, or why it cannot be; in a process of its own, as compilers keep what they took."""
    environment = dict(os.environ)
    if case.topology.startswith("gpu:"):
        folders = [str(folder) for folder in GPU_LIBRARIES.glob("nvidia/*/lib")]
        environment["LD_LIBRARY_PATH"] = ":".join(folders)
        environment["PYTHONPATH"] = f"{GPU_LIBRARIES}:{environment.get('PYTHONPATH', '')}"
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            sys.executable,
            "-c",
            RDRO,
            *arguments(case),
        ]
        done = subprocess.run(
            [*command, "--json", file.name], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode not in (0, 2):
            raise SystemExit(done.stderr)
        figures = json.loads(Path(file.name).read_text() or "[{}]")[0]
    figures.pop("layout", None)
    error = next((line for line in done.stderr.splitlines() if line.startswith("rdro: error: ")), None)
    told = {"arguments": " ".join(arguments(case)), "exit_code": done.returncode}
    return told | ({"error": error.removeprefix("rdro: error: ")} if error else {}) | figures


if __name__ == "__main__":
    main(sys.argv[1:])
