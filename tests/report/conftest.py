"""Run folders as a run leaves them: a real one, longer ones of its lines, and some written by hand."""

import json
import shutil

import numpy as np
import pytest
from tiny import write_folder

from rdro_jax.config import load_config
from rdro_jax.train import train

HOSTILE = "</script><script>document.documentElement.dataset.broken = 'yes'</script><img src=x onerror=alert(1)>"


def write_run(folder, *, steps=20, alpha=0.4, rate=1e-3, seed=0, samples=()):
    """A folder with every file that a report reads."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines, pictures = [], []
    for step in range(1, steps + 1):
        s = step / steps
        line = {
            "step": step,
            "loss": 1.4 - 0.4 * s,
            "rewards/chosen": s,
            "rewards/rejected": -s,
            "rewards/margins": 2 * s,
        }
        line |= {f"rewards/{name}_{q}": v for name in ("chosen", "rejected") for q, v in (("p5", -1.0), ("p95", 1.0))}
        line |= {"logps/chosen": -20.0, "logps/rejected": None, "grad_norm": float(random.uniform(0.5, 2))}
        line |= {"skipped_steps": int(step == 3), "throughput/tokens_per_s": 100.0, "ratio/normalisation": 1.0}
        lines.append(line)
        if step % (steps // 4) == 0:
            told = {"loss": 1.3, "rewards/auc": 0.5 + s / 3, "divergence/kl": s, "alpha_hat/value": 0.4}
            told |= {"alpha_hat/low": 0.3, "alpha_hat/high": 0.5}
            lines.append({"step": step} | {f"eval_{name}": value for name, value in told.items()})
            curve = {"forecast": [0.1, None, 0.9], "observed": [0.2, None, 0.8], "weight": [3.0, 0.0, 4.0]}
            histogram = {"edges": [-1.0, 0.0, 1.0], "chosen": [1, 3], "rejected": [3, 1]}
            pictures.append({"step": step, "log_ratio": histogram, "reliability": curve})
    to_lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    (folder / "metrics.jsonl").write_text(to_lines(lines))
    (folder / "evaluations.jsonl").write_text(to_lines(pictures))
    (folder / "samples.jsonl").write_text(to_lines(samples))
    (folder / "config.yaml").write_text(
        f"seed: 42\nloss: {{name: rdro, alpha: {alpha}}}\noptimizer: {{learning_rate: {rate}}}\n"
    )
    (folder / "loss.json").write_text(json.dumps({"name": "rdro", "alpha": alpha, "floor": 0.84, "log_bound": 0.916}))
    (folder / "data_report.json").write_text(json.dumps({"train": {"rows": 60, "dropped": {HOSTILE: 2}}}))
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"jax": "0.10.2"}}))
    return folder


@pytest.fixture(scope="session")
def run_folders(tmp_path_factory):
    """Three runs that differ in alpha or learning rate, the first with strangers' words for samples."""
    home = tmp_path_factory.mktemp("runs")
    samples = [
        {"prompt": HOSTILE, "before": "plain", "after": HOSTILE, "score_after": 0.25},
        {"prompt": "two", "label": True, "tokens": [["Gre", 0.5], ["en", -4.0], [HOSTILE, 0.0]], "log_ratio": -3.5},
    ]
    return [
        write_run(home / "first", samples=samples),
        write_run(home / "second", alpha=0.3, seed=1),
        write_run(home / f"third <b>{'x' * 3}", rate=2e-3, seed=2, samples=[{"prompt": "p", "completion": "q"}]),
    ]


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """A run of three steps on a tiny model, with every file it leaves."""
    home = tmp_path_factory.mktemp("real")
    write_folder(home)
    (home / "run.yaml").write_text(f"""
output_dir: {home / "run"}
max_steps: 3
eval_steps: 1
global_batch_size: 8
model: {{path: {home / "model"}}}
reference: {{store: {home / "store"}}}
data: {{train: {home / "train.jsonl"}, eval: {home / "eval.jsonl"}, max_length: 32, slots: 4}}
loss: {{name: rdro}}
optimizer: {{learning_rate: 1.0e-2}}
checkpoint: {{save_steps: 1}}
report_to: []
""")
    return train(load_config(home / "run.yaml")).run_dir


def stretch(run, folder, *, steps, evaluations):
    """A run of the lines of `run`, over and over, on an accelerator whose peak is known and with one step skipped."""
    folder.mkdir(parents=True)
    for file in run.glob("*.*"):
        if file.suffix in (".json", ".yaml", ".jsonl"):
            shutil.copy(file, folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n") if line]
    logged = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "eval_loss" in line]
    pictures = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().split("\n") if line]
    # What a window holds that follows an evaluation and a save, too.
    full = {key: value for line in logged for key, value in line.items()} | {"throughput/mfu": 0.4}
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "evaluations.jsonl").open("w") as shown:
        for step in range(1, steps + 1):
            one = full | logged[step % len(logged)] | {"step": step, "skipped_steps": int(step == 2)}
            metrics.write(json.dumps(one) + "\n")
            if step % (steps // evaluations) == 0:
                metrics.write(json.dumps(judged[step % len(judged)] | {"step": step}) + "\n")
                shown.write(json.dumps(pictures[step % len(pictures)] | {"step": step}) + "\n")
    return folder
