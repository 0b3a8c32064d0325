"""Compile the plans that docs/scaling.md speaks of, one process each, and keep their figures: `make plans`.

    python -m benchmarks.plans [NAME ...]

Without names: those that are not in docs/plans.json yet. A compile takes half a minute to several minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "docs" / "plans.json"
GPU_LIBRARIES = ROOT / ".plans" / "gpu"
"""XLA's GPU compiler and the libraries it asks, beside the environment: in it they would replace jax's own platform."""

RDRO = "import sys; from rdro_jax.cli import main; sys.exit(main())"


class Case(NamedTuple):
    """One plan: a preset, a machine, and what is set beyond configs/rdro.yaml."""

    model: str
    topology: str
    overrides: tuple[str, ...] = ()


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
}


def main(names: list[str]) -> None:
    """Compile the cases called `names`, or all that are missing, and write each one's figures down as it comes."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in names or [name for name in CASES if name not in record]:
        print(f"{name}: {' '.join(arguments(CASES[name]))}", flush=True)
        record[name] = run(CASES[name])
        ordered = {known: record[known] for known in CASES if known in record}
        RECORD.write_text(json.dumps(ordered, indent=1) + "\n")
    print("\n".join(table(record)))


def table(record: dict[str, Any]) -> list[str]:
    """The record as the table of docs/scaling.md."""
    titles = "model", "devices", "set beyond configs/rdro.yaml", "peak GiB", "of", "estimate", "sent GiB", "MFU bound"
    return [f"| {' | '.join(titles)} |", "|---|---|---|---|---|---|---|---|", *map(_row, CASES, map(record.get, CASES))]


def _row(name: str, figures: dict[str, Any] | None) -> str:
    case = CASES[name]
    cells = [case.model, case.topology, " ".join(f"`{key}`" for key in case.overrides)]
    if figures is None or "peak_bytes" not in figures:
        return f"| {' | '.join([*cells, (figures or {}).get('error', 'not compiled'), *[''] * 4])} |"
    gib = lambda size: f"{size / 2**30:.2f}"  # noqa: E731
    compiled = figures["compiled"]
    sent = gib(sum(kind["sent"] for kind in compiled["collectives"].values())) if compiled else ""
    peak = gib(figures["peak_bytes"]) if compiled else f"{gib(figures['peak_bytes'])}, refused"
    bound = f"{figures['mfu_bound']:.0%}" if compiled else ""
    return (
        f"| {' | '.join([*cells, peak, gib(figures['memory_bytes']), gib(figures['estimate']['peak']), sent, bound])} |"
    )


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
