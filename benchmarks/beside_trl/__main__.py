"""`python -m benchmarks.beside_trl [REPEATS]`: our step beside TRL's, theirs in the environment of `make parity`.

One model, one file of rows, one thread, one core; each side is a process of its own, and they take turns step by step.
Dense rows all have one length; ragged ones are log-normal, which TRL pads to the longest of a batch and we pack.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.beside_trl.gate import Worker

HERE = Path(__file__).parent
OUR_PYTHON = str(HERE.parents[1] / ".venv" / "bin" / "python")
"""Of `make setup`: transformers imports torch wherever it is installed, which `rdro train` never needs."""
OUT = Path("runs/bench_trl.json")
BOUNDS = {("dense", "apo_zero_unpaired"): 2.0, ("ragged", "apo_zero_unpaired"): 4.0, ("ragged", "kto"): 7.0}
"""How many times TRL's tokens (dense) or examples (ragged) per CPU-second ours are to be, at the least."""
MEMORY_BOUND = 0.6
"""Share of TRL's peak resident memory that ours is to be at the most, on dense rows."""


@dataclasses.dataclass(frozen=True)
class Race:
    """Sizes of the model and of a step."""

    layers: int = 4
    d_model: int = 256
    vocab: int = 32_000
    examples: int = 8
    """Examples of a step of TRL's."""
    dense: int = 256
    """Tokens of a dense row; half of them are its prompt, as in ragged ones."""
    longest: int = 1024
    """Tokens of the longest ragged example, and of a packed row."""
    packed_rows: int = 2
    """Packed rows of a step of ours: about as many examples as TRL's step has."""
    median_length: int = 150
    sigma: float = 0.8
    """Standard deviation of the logarithm of a ragged length."""
    repeats: int = 9
    seed: int = 0


def write_model(race: Race, folder: Path) -> None:
    """A Hugging Face folder of a random untied Qwen 2, one word of its vocabulary one token."""
    import jax
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from rdro_jax.models import ModelConfig, init_params, save_model

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(race.vocab - 2)} | special(race), unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shape = {"d_model": race.d_model, "n_layers": race.layers, "head_dim": race.d_model // 4, "d_ff": 4 * race.d_model}
    config = ModelConfig("qwen2", vocab_size=race.vocab, n_heads=4, n_kv_heads=2, qkv_bias=True, **shape)
    save_model(init_params(config, jax.random.key(race.seed)), config, folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)


def special(race: Race) -> dict[str, int]:
    """Ids of the two tokens that are no words."""
    return {"<pad>": race.vocab - 2, "<eos>": race.vocab - 1}


def write_rows(race: Race, kind: str, file: Path) -> None:
    """Rows enough for all steps, in random words."""
    rng = np.random.default_rng(race.seed)
    count = 3 * race.examples * (race.repeats + 2) // 2
    drawn = np.exp(rng.normal(np.log(race.median_length), race.sigma, count))
    lengths = np.full(count, race.dense) if kind == "dense" else np.clip(drawn, 8, race.longest).astype(int)
    say = lambda n: " ".join(f"w{i}" for i in rng.integers(0, race.vocab - 2, n))  # noqa: E731
    rows = [
        # One token less: both sides end a completion with <eos>.
        {"prompt": say(n // 2), "completion": " " + say(n - n // 2 - 1), "label": i % 2 == 0}
        for i, n in enumerate(lengths)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings_of_ours(race: Race, kind: str, scratch: Path) -> dict[str, Any]:
    """What the process of ours is told."""
    length, slots = (race.dense, 1) if kind == "dense" else (race.longest, 16)
    return {
        "config": {
            "output_dir": str(scratch / f"ours-{kind}"),
            "global_batch_size": race.examples if kind == "dense" else race.packed_rows,
            "model": {"path": str(scratch / "model"), "remat": "none"},
            "data": {"train": str(scratch / f"{kind}.jsonl"), "max_length": length, "slots": slots, "workers": 1},
            "loss": {"name": "apo_zero_unpaired", "beta": 0.1},
            "optimizer": {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "warmup_ratio": 0.0},
        }
    }


def settings_of_trl(race: Race, kind: str, loss: str, scratch: Path) -> dict[str, Any]:
    """What a process of TRL's is told: with `kto`, its default, the reference is a second model."""
    return {
        "scratch": str(scratch),
        "model": str(scratch / "model"),
        "rows": str(scratch / f"{kind}.jsonl"),
        "examples": race.examples,
        "max_length": race.longest,
        "max_steps": race.repeats + 2,
        "learning_rate": 1e-4,
        "loss_type": loss,
        "cached_reference": loss != "kto",
    }


def race_once(race: Race, kind: str, scratch: Path, core: int) -> dict[str, dict[str, float]]:
    """Figures of ours, of TRL with a cached reference and, on ragged rows, of TRL's default."""
    write_rows(race, kind, scratch / f"{kind}.jsonl")
    told = {"ours": (OUR_PYTHON, HERE / "ours.py", settings_of_ours(race, kind, scratch))}
    for loss in ("apo_zero_unpaired", "kto") if kind == "ragged" else ("apo_zero_unpaired",):
        told[f"trl {loss}"] = (sys.executable, HERE / "theirs.py", settings_of_trl(race, kind, loss, scratch))
    workers = {name: start_worker(*words, core) for name, words in told.items()}
    for worker in workers.values():
        worker.step()  # warms up, unmeasured
    steps = [{name: worker.step() for name, worker in workers.items()} for _ in range(race.repeats)]
    for worker in workers.values():
        worker.close()
    return {name: summary([step[name] for step in steps]) for name in workers}


def start_worker(python: str, script: Path, settings: dict[str, Any], core: int) -> Worker:
    """A process on one core, one thread."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return Worker(["taskset", "-c", str(core), python, str(script), json.dumps(settings)], threads)


def summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean counts of a step over the median cost of one: how long ragged rows are is chance, what disturbs them too."""
    cost = median(step["cpu_seconds"] for step in steps)
    return {
        "tokens_per_cpu_second": mean(step["tokens"] for step in steps) / cost,
        "examples_per_cpu_second": mean(step["examples"] for step in steps) / cost,
        "cpu_seconds_per_step": cost,
        "seconds_per_step": median(s["seconds"] for s in steps),
        "peak_rss_mib": steps[-1]["peak_rss_bytes"] / 2**20,
        "loss": steps[-1]["loss"],
    }


def verdicts(figures: dict[str, dict[str, dict[str, float]]]) -> list[tuple[str, float, str, bool]]:
    """What was wanted, what was got, and whether that will do."""
    result = []
    for (kind, loss), bound in BOUNDS.items():
        ours, theirs, unit = (
            figures[kind]["ours"],
            figures[kind][f"trl {loss}"],
            "tokens" if kind == "dense" else "examples",
        )
        ratio = ours[f"{unit}_per_cpu_second"] / theirs[f"{unit}_per_cpu_second"]
        result.append((f"{kind}: {unit} per CPU-second over TRL's {loss}", ratio, f">= {bound}", ratio >= bound))
    share = figures["dense"]["ours"]["peak_rss_mib"] / figures["dense"]["trl apo_zero_unpaired"]["peak_rss_mib"]
    return [*result, ("dense: peak RSS over TRL's", share, f"<= {MEMORY_BOUND}", share <= MEMORY_BOUND)]


def main(race: Race = Race(), out: Path = OUT) -> None:
    """Measure, print, write."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_model(race, scratch / "model")
        figures = {kind: race_once(race, kind, scratch, core) for kind in ("dense", "ragged")}
    console = Console()
    for kind, sides in figures.items():
        table = Table("", *sides, title=f"{kind} rows", title_justify="left")
        for figure in sides["ours"]:
            table.add_row(figure, *(f"{side[figure]:,.4g}" for side in sides.values()))
        console.print(table)
    for what, got, wanted, enough in verdicts(figures):
        console.print(f"{'ok    ' if enough else 'MISSED'} {what}: {got:.2f}, wanted {wanted}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"race": dataclasses.asdict(race), "figures": figures}, indent=2) + "\n")
    console.print(out, style="dim")


if __name__ == "__main__":
    main(Race(repeats=int(sys.argv[1])) if sys.argv[1:] else Race())
