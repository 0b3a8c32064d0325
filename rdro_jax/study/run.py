"""Studies by name: run them, print their tables, write their files, and say whether every figure was reached."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from rdro_jax.errors import ConfigError, RdroError
from rdro_jax.study.alpha import alpha, alpha_hat, prompt_alpha
from rdro_jax.study.consistency import check_losses, consistency, sft_gap
from rdro_jax.study.cyclic import cyclic
from rdro_jax.study.estimators import batch, batch_mean
from rdro_jax.study.numerics import numerics
from rdro_jax.study.report import Options, StudyReport, require_matplotlib, table, write
from rdro_jax.study.stability import stability
from rdro_jax.study.tree import tree

STUDIES: dict[str, Callable[[Options], StudyReport]] = {
    "consistency": consistency,
    "sft_gap": sft_gap,
    "stability": stability,
    "cyclic": cyclic,
    "alpha": alpha,
    "batch": batch,
    "tree": tree,
    "numerics": numerics,
    "alpha_hat": alpha_hat,
    "prompt_alpha": prompt_alpha,
    "batch_mean": batch_mean,
}
ALL = "all"
SUMMARY_FILE = "studies.json"


class MissedError(RdroError):
    """A study ran to its end and a figure lies outside its bounds."""

    exit_code = 1


def run(name: str, out: Path, options: Options, console: Console | None = None) -> list[StudyReport]:
    """The reports of one study, or of `all`, printed, and written to `out` as NAME.json and NAME.png.

    Raises: ConfigError for what cannot be run, StorageError for a folder that cannot be written, MissedError, once
    everything is written, where a figure was missed.
    """
    check_request(name, options)
    console = console or Console()
    reports, seconds = [], {}
    for each in STUDIES if name == ALL else (name,):
        start = time.perf_counter()
        reports.append(STUDIES[each](options))
        seconds[each] = round(time.perf_counter() - start, 1)
        files = write(reports[-1], out)
        console.print(table(reports[-1]))
        console.print(f"{seconds[each]:.0f} s · {' · '.join(map(str, files))}\n", style="dim", highlight=False)
    if name == ALL:
        (out / SUMMARY_FILE).write_text(json.dumps(summary(reports, seconds, options), indent=2) + "\n")
    raise_missed(reports)
    return reports


def check_request(name: str, options: Options) -> None:
    """Raises: ConfigError for an unknown study or loss, a count of seeds below 1, or missing matplotlib."""
    if name != ALL and name not in STUDIES:
        raise ConfigError(f"study: got {name!r}; wanted {ALL} or one of {', '.join(STUDIES)}")
    if options.losses and name not in (ALL, "consistency"):
        raise ConfigError(f"--losses: study {name!r} compares fixed losses; wanted study consistency or all")
    check_losses(options.losses)
    if options.seeds < 1:
        raise ConfigError(f"--seeds: got {options.seeds}; wanted 1 or more")
    require_matplotlib()


def summary(reports: list[StudyReport], seconds: dict[str, float], options: Options) -> dict[str, object]:
    """What one look should tell: which studies passed, in how many seconds."""
    studies = {
        report.name: {"passed": not report.missed, "checks": len(report.checks), "seconds": seconds[report.name]}
        for report in reports
    }
    return {"seeds": options.seeds, "fast": options.fast, "seconds": sum(seconds.values()), "studies": studies}


def raise_missed(reports: list[StudyReport]) -> None:
    """Raises: MissedError in one line naming the missed figures of the reports, if there are any."""
    missed = [
        f"{report.name}: {check.what}: got {check.measured:.4g}, wanted {check.wanted}"
        for report in reports
        for check in report.missed
    ]
    if missed:
        more = f"; and {len(missed) - 3} more" if len(missed) > 3 else ""
        raise MissedError(f"{len(missed)} figures missed: {'; '.join(missed[:3])}{more}")
