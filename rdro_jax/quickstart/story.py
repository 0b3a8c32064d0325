"""run(out): the whole path, from a model and rated text on the package index to an aligned Hugging Face folder."""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rdro_jax.config import Config, load_config
from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.evaluate.outputs import read_objects
from rdro_jax.evaluate.outputs import write_rows as write_objects
from rdro_jax.evaluate.samples import token_rows
from rdro_jax.export import export
from rdro_jax.quickstart.fetch import fetch_model, fetch_reviews
from rdro_jax.quickstart.figure import Panels, draw
from rdro_jax.quickstart.judge import score
from rdro_jax.quickstart.reviews import write_rows
from rdro_jax.quickstart.samples import Samples, distinct_share, paired_shift, sample
from rdro_jax.quickstart.tell import tell
from rdro_jax.report import write_report
from rdro_jax.run_files import EVALUATIONS_FILE, LOSS_FILE, METRICS_FILE, SAMPLES_FILE, read_metrics
from rdro_jax.train import train

SEED = 42
N_TRAIN, N_HELDOUT = 800, 400
ROWS_PER_STEP = 4
N_SAMPLES, MAX_NEW_TOKENS, N_SHOWN = 256, 64, 6
N_SHADED = 8
"""Held-out sentences whose tokens the report shades by log-ratio."""
DISK_BYTES = 6e9
"""Two checkpoints with optimizer state, three models in float32, the cache."""
HERE = Path(__file__).parent


def run(out: Path) -> dict[str, Any]:
    """Align SmolLM2-135M-Instruct by RDRO on rated movie-review sentences; returns what `out/summary.json` says.

    About a quarter of an hour on two cores. Stopped and run again with the same `out`, training goes on where it was.
    """
    require_packages()
    require_room(out)
    seconds: dict[str, float] = {}
    with chapter("1/4  a pretrained model, and sentences that people have rated", seconds, "fetch"):
        model = fetch_model()
        rows = write_rows(fetch_reviews(), out / "rows", n_train=N_TRAIN, n_heldout=N_HELDOUT, seed=SEED)

    with chapter("2/4  SFT on all sentences: the model becomes the mixture, RDRO's reference", seconds, "sft"):
        sft = train(stage_config("sft.yaml", model, out / "1-sft", rows.train)).run_dir

    with chapter("3/4  RDRO: towards what people liked, away from what they did not", seconds, "rdro"):
        result = train(stage_config("rdro.yaml", sft, out / "2-rdro", rows.train, rows.heldout))
        rdro, heldout = result.run_dir, heldout_figures(result.run_dir, result.metrics)

    with chapter(f"4/4  {N_SAMPLES} sentences before and after, with the same random numbers", seconds, "samples"):
        before, after = (sample(at, count=N_SAMPLES, max_new_tokens=MAX_NEW_TOKENS, seed=SEED) for at in (sft, rdro))
        shaded = token_rows(rdro, reference=sft, data=rows.heldout, count=N_SHADED)

    with chapter("the aligned model as a Hugging Face folder, and a picture of the run", seconds, "export"):
        model = export(rdro, out / "model")
        metrics = list(read_metrics(rdro / METRICS_FILE))
        evaluation = list(read_metrics(rdro / EVALUATIONS_FILE))[-1]
        panels = Panels(metrics, evaluation["log_ratio"], heldout["alpha"], before.scores, after.scores)
        picture = draw(panels, out / "run.png")
        texts = write_samples(rdro / SAMPLES_FILE, shaded, before, after)
        page = write_report([rdro], out / "report.html")

    summary = {
        "model": "SmolLM2-135M-Instruct, Q4_1 expanded to float32",
        "heldout": heldout,
        "samples": sample_figures(before, after) | {"human_sentences": human_scores(rows.heldout)},
        "seconds": seconds | {"total": sum(seconds.values())},
        "files": {
            "model": str(model),
            "picture": str(picture),
            "report": str(page),
            "samples": str(texts),
            "summary": str(out / "summary.json"),
        },
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    tell(summary, list(zip(before.texts, after.texts, strict=True))[:N_SHOWN])
    return summary


def require_packages() -> None:
    """Raise ConfigError now, rather than after training, where a package of the `quickstart` extra is missing."""
    missing = [name for name in ("bokeh", "gguf", "matplotlib", "pip", "vaderSentiment") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the quickstart needs {', '.join(missing)}: pip install 'rdro_jax[quickstart]'")


def require_room(out: Path) -> None:
    """Make `out`; raise StorageError where that fails or the disk cannot hold the run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise StorageError(f"{out}: cannot be made ({error.strerror}); choose another folder") from None
    if free < DISK_BYTES and not any(out.iterdir()):
        raise StorageError(f"{out}: {free / 1e9:.1f} GB free, wanted {DISK_BYTES / 1e9:.0f} GB; choose another disk")


@contextmanager
def chapter(title: str, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Says on stderr what begins, and notes in `seconds` how long it took."""
    print(f"\n{title}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def stage_config(recipe: str, model: Path, run_dir: Path, rows: Path, heldout: Path | None = None) -> Config:
    """The config of one stage: the packaged recipe with its folders filled in, and a row at least for every device."""
    paths = {"model.path": model, "output_dir": run_dir, "data.train": rows}
    paths |= {"data.eval": heldout} if heldout else {}
    # JSON's quotes are YAML's: a folder may be called anything.
    overrides = [f"{key}={json.dumps(str(path))}" for key, path in paths.items()]
    devices = jax.device_count()
    return load_config(HERE / recipe, [*overrides, f"global_batch_size={-(-ROWS_PER_STEP // devices) * devices}"])


def heldout_figures(run_dir: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the last evaluation says of the held-out sentences, under names of this summary's own."""
    return {
        "sentences": round(metrics["eval_counts/chosen"] + metrics["eval_counts/rejected"]),
        "alpha": json.loads((run_dir / LOSS_FILE).read_text())["alpha"],
        "auc": metrics["eval_rewards/auc"],
        "log_ratio_positive": metrics["eval_rewards/chosen"],
        "log_ratio_negative": metrics["eval_rewards/rejected"],
        "over_bound": metrics["eval_ratio/over_bound"],
    }


def sample_figures(before: Samples, after: Samples) -> dict[str, Any]:
    """The judge's means, their paired difference, and how many different sentences there are."""
    return {
        "count": len(after.texts),
        "mean_before": float(before.scores.mean()),
        "mean_after": float(after.scores.mean()),
        "shift": paired_shift(before.scores, after.scores)._asdict(),
        "distinct_before": distinct_share(before.texts),
        "distinct_after": distinct_share(after.texts),
    }


def human_scores(rows: Path) -> dict[str, float]:
    """The judge's mean score of people's own sentences, by label: the scale on which to read a shift."""
    labelled = list(read_objects(rows))
    scores = np.array([score(row["prompt"], row["completion"]) for row in labelled])
    liked = np.array([row["label"] for row in labelled])
    return {"positive": float(scores[liked].mean()), "negative": float(scores[~liked].mean())}


def write_samples(path: Path, shaded: list[dict[str, Any]], before: Samples, after: Samples) -> Path:
    """Held-out sentences by token, then every pair of sampled sentences with the judge's scores, one object a line."""
    columns = zip(before.texts, after.texts, before.scores.tolist(), after.scores.tolist(), strict=True)
    names = ("before", "after", "score_before", "score_after")
    return write_objects(path, [*shaded, *(dict(zip(names, row, strict=True)) for row in columns)])
