"""Run folders as a run leaves them, written by hand."""

import json

import numpy as np
import pytest

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
