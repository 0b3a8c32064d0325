"""The model card of a trained policy, and what it says of a run."""

from pathlib import Path
from typing import Any

import jax

from rdro_jax.config import Config
from rdro_jax.errors import StorageError
from rdro_jax.models import Params
from rdro_jax.parallel import is_first
from rdro_jax.run_files import METRICS_FILE, read_metrics

CARD_FILE = "README.md"


def write_card(folder: Path, config: Config, params: Params, step: int, metrics: dict[str, Any]) -> None:
    """Put the card beside a saved model: what it is, how many parameters, what it was trained with, how it did.

    With several processes the first writes. Raises: StorageError.
    """
    if is_first():
        try:
            (folder / CARD_FILE).write_text(_card(config, params, step, metrics), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{folder / CARD_FILE}: cannot be written: {error.strerror}; free space") from error


def _card(config: Config, params: Params, step: int, metrics: dict[str, Any]) -> str:
    leaves = jax.tree.leaves(params)
    rows = [f"| {name} | {value} |" for name, value in sorted(metrics.items()) if isinstance(value, int | float)]
    measured = ["## Metrics", "", "| metric | value |", "|---|---|", *rows, ""] if rows else []
    lines = [
        *("---", "library_name: transformers", f"tags: [rdro_jax, {config.loss.name}]", "---", ""),
        *(f"# {Path(config.model.path).name} after {step} steps of {config.loss.name}", ""),
        f"Trained by rdro_jax from `{config.model.path}`: {sum(leaf.size for leaf in leaves):,} parameters in "
        f"{', '.join(sorted({leaf.dtype.name for leaf in leaves}))}.",
        *("", *measured, "## Configuration", "", "```yaml", config.to_yaml().rstrip(), "```", ""),
    ]
    return "\n".join(lines)


def metrics_of(run: Path, step: int) -> dict[str, Any]:
    """What metrics.jsonl says of a step; the last line that names a metric counts."""
    file = run / METRICS_FILE
    lines = (line for line in read_metrics(file) if line.get("step") == step) if file.exists() else ()
    return {name: value for line in lines for name, value in line.items()}
