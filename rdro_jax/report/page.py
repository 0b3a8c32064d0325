"""A report as one HTML file: Bokeh, the data and the styles inside it, nothing fetched, nothing run but what is named.

Completions, prompts, file names and configs are strangers' words: the template escapes them all, and the page's content
security policy lets no script run whose hash it does not name.
"""

import base64
import gc
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from rdro_jax.errors import ConfigError, StorageError
from rdro_jax.report.charts import draw
from rdro_jax.report.runs import Run, load_runs
from rdro_jax.report.samples import rows_of

SUMMARY = {
    "loss": "loss",
    "held-out loss": "eval_loss",
    "held-out AUC": "eval_rewards/auc",
    "AUC within prompt": "eval_rewards/auc_within_prompt",
    "margin, nats": "rewards/margins",
    "normalisation (1)": "eval_ratio/normalisation",
    "share above 1/alpha": "eval_ratio/over_bound",
    "effective share": "eval_ratio/effective_share",
    "alpha_hat": "eval_alpha_hat/value",
    "calibration error": "eval_calibration/ece",
    "KL(p+ || reference), nats": "eval_divergence/kl",
    "tokens per second": "throughput/tokens_per_s",
}
"""Row of the summary -> the metric whose last value it shows."""


class Table(NamedTuple):
    """Values by key, a column for each run."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...], bool], ...]
    """(key, value of each run, whether they differ)."""
    open: bool = False
    """Whether it is shown unfolded; of a folded one the rows that differ are marked."""


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page on the runs in `folders` to `out`, and return `out`.

    Raises: ConfigError where a folder holds no run or Bokeh is not installed, StorageError where `out` cannot be
    written.
    """
    if find_spec("bokeh") is None:
        raise ConfigError("rdro report draws with Bokeh, which is not installed: pip install 'rdro_jax[report]'")
    with _uncollected():
        page = render(load_runs(folders))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise StorageError(f"{out}: {error.strerror}; wanted a file that can be written") from error
    return out


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for garbage: a page is made in a second or two, and most of what that takes stays until its end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def render(runs: Sequence[Run]) -> str:
    """The page as text."""
    import bokeh

    plots = draw(runs)
    charts = [_item(plot, f"chart-{index}") for index, plot in enumerate(plots)]
    library = files(bokeh).joinpath("server", "static", "js", "bokeh.min.js").read_text(encoding="utf-8")
    samples = rows_of(runs)
    shaded = any(piece.shade for row in samples for cell in row.cells for piece in cell.pieces)
    scripts = [_inline(library), _inline(_part("page.js"))]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_part("page.html.j2")).render(
        title=f"rdro report: {', '.join(run.name for run in runs)}",
        runs=runs,
        summary=summary(runs),
        tables=tables(runs),
        charts=[plot.title.text for plot in plots],
        samples=samples,
        shaded=shaded,
        style=_part("page.css"),
        scripts=scripts,
        hashes=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        # In a script element only "<" can end it, and JSON may spell it otherwise.
        data=json.dumps(charts, allow_nan=False).replace("<", "\\u003c"),
    )


def _item(plot: Any, target: str) -> dict[str, Any]:
    """What `Bokeh.embed.embed_item` draws: as of `bokeh.embed.json_item`, without the settings of a document, which are
    defaults; in half its time.
    """
    import bokeh
    from bokeh.core.serialization import Serializer

    roots = Serializer(deferred=False).encode([plot])
    content = {"version": bokeh.__version__, "title": "Bokeh Application", "roots": roots}
    return {"target_id": target, "root_id": plot.id, "doc": content, "version": bokeh.__version__}


def summary(runs: Sequence[Run]) -> Table:
    """What one wants to know first: how far each run is, and its last figures."""
    told: dict[str, Callable[[Run], Any]] = {
        "state": lambda run: "finished" if run.finished else "not finished",
        "last step": lambda run: run.last_step(),
        "objective": lambda run: run.loss.get("name") or run.config.get("loss.name"),
        "alpha": lambda run: run.loss.get("alpha") or run.config.get("loss.alpha"),
        "floor of the loss": lambda run: run.loss.get("floor") or run.latest("eval_loss_floor"),
        "skipped steps": lambda run: run.skipped_steps(),
    }
    told |= {name: (lambda run, key=key: run.latest(key)) for name, key in SUMMARY.items()}
    columns = [{name: value(run) for name, value in told.items()} for run in runs]
    known = [name for name in told if any(column[name] is not None for column in columns)]
    return _table("Summary", [{name: column[name] for name in known} for column in columns], open=True)


def tables(runs: Sequence[Run]) -> list[Table]:
    """Configs, what differs in them first, data reports and environments."""
    configs = [run.config for run in runs]
    keys = {key for config in configs for key in config}
    differing = {key for key in keys if len({_spell(config.get(key, "")) for config in configs}) > 1}
    changed = [{key: value for key, value in config.items() if key in differing} for config in configs]
    parts = [
        *([_table("What differs in the configs", changed, open=True)] if len(runs) > 1 else []),
        _table("Data report", [run.data for run in runs]),
        _table("Config", configs),
        _table("Loss as trained", [run.loss for run in runs]),
        _table("Environment", [run.environment for run in runs]),
    ]
    return [table for table in parts if table.rows]


def _table(title: str, columns: Sequence[Mapping[str, Any]], *, open: bool = False) -> Table:
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = []
    for key in keys:
        values = tuple(_spell(column[key]) if key in column else "" for column in columns)
        rows.append((key, values, len({*values}) > 1))
    return Table(title, tuple(rows), open)


def _spell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _part(name: str) -> str:
    return files("rdro_jax.report").joinpath(name).read_text(encoding="utf-8")


def _inline(script: str) -> str:
    """A script as it stands between its tags, which it must not close itself."""
    return script.replace("</script", "<\\/script")


def _digest(script: str) -> str:
    """SHA-256 as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
