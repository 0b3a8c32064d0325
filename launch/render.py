"""Writes the examples in this folder anew from the templates of `rdro_jax/launch`: `python launch/render.py`."""

from pathlib import Path

from rdro_jax.launch import load_cluster, render
from rdro_jax.launch.render import Job

HERE = Path(__file__).parent
RUN = Job("rdro-first", "rdro train configs/rdro.yaml model.path=models/sft output_dir=runs/first", "runs/first")
SWEEP = Job("rdro-losses", "rdro sweep configs/sweeps/losses.yaml --dry-run", "runs/sweeps/losses", 24)
EXAMPLES = {
    "slurm/train.sbatch": ("slurm", "slurm", "train.sbatch", RUN),
    "slurm/sweep_array.sbatch": ("slurm", "slurm", "sweep_array.sbatch", SWEEP),
    "gke/jobset_tpu.yaml": ("gke", "gke-tpu", "jobset.yaml", RUN),
    "gke/jobset_tpu_multislice.yaml": ("gke", "gke-tpu-multislice", "jobset.yaml", RUN),
    "gke/jobset_gpu.yaml": ("gke", "gke-gpu", "jobset.yaml", RUN),
    "skypilot/gpu.yaml": ("sky", "sky", "task.yaml", RUN),
    "skypilot/tpu_spot.yaml": ("sky", "sky-tpu-spot", "task.yaml", RUN),
    "skypilot/sweep_trial.yaml": ("sky", "sky", "sweep_trial.yaml", SWEEP),
    "tpu_vm/create.sh": ("tpu-vm", "tpu-vm", "create.sh", RUN),
    "tpu_vm/start.sh": ("tpu-vm", "tpu-vm", "start.sh", RUN),
    "tpu_vm/run.sh": ("tpu-vm", "tpu-vm", "run.sh", RUN),
    "tpu_vm/delete.sh": ("tpu-vm", "tpu-vm", "delete.sh", RUN),
}
"""File -> engine, cluster file, file of the engine, job."""


def example(name: str) -> str:
    """What the file should hold."""
    engine, cluster, file, job = EXAMPLES[name]
    path = HERE.parent / "configs" / "clusters" / f"{cluster}.yaml"
    settings = load_cluster(path).settings if job is SWEEP else ()
    return render(engine, load_cluster(path), job._replace(settings=settings), sweep=job is SWEEP)[file]


if __name__ == "__main__":
    for name in EXAMPLES:
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(example(name))
