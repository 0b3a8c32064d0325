"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rdro_jax.parallel import is_first

Report = Callable[[dict[str, Any]], None]


def say(message: str) -> None:
    """One line on stderr, where this process is the one that talks: stdout belongs to results."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int, done: int) -> Iterator[Report]:
    """A function that shows one line of metrics: a bar with the time left on a terminal, else a line of text."""
    console = Console(stderr=True)
    if not console.is_terminal or not is_first():
        yield lambda line: say(f"{title} step {line['step']}/{total}  {_figures(line)}")
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[say]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, say="compiling")
        yield lambda line: bar.update(task, completed=line["step"], say=_figures(line))


def _figures(line: dict[str, Any]) -> str:
    shown = {
        "loss": "loss {:.4f}",
        "rewards/margins": "margin {:+.3f}",
        "grad_norm": "grad {:.2f}",
        "throughput/tokens_per_s": "{:.0f} tokens/s",
    }
    return "  ".join(form.format(line[key]) for key, form in shown.items() if line.get(key) is not None)
