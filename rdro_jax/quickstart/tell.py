"""The end of the story on the terminal: figures, sentences side by side, what it does and does not show."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

LIMITS = (
    "A sentiment demo: the labels say whether people found a sentence positive, not whether it is a good answer, and "
    "the judge (VADER, a word list with rules) measures the same thing more crudely. The model was stored in 4 bits "
    "and expanded again, so it is a little worse than SmolLM2-135M-Instruct itself. One run, one seed, one prompt."
)


def tell(summary: dict[str, Any], pairs: Sequence[tuple[str, str]], console: Console | None = None) -> None:
    """Print the summary of a run; `pairs` are completions (before, after) to show side by side."""
    console = console or Console()
    console.print(figures_table(summary))
    console.print(pairs_table(pairs))
    console.print(verdict(summary["samples"]["shift"]))
    console.print(LIMITS, style="dim")
    for name, path in summary["files"].items():
        console.print(f"{name:<8} {path}", soft_wrap=True, highlight=False, markup=False)


def figures_table(summary: dict[str, Any]) -> Table:
    """The figures of the run, a row each."""
    heldout, judged = summary["heldout"], summary["samples"]
    shift, human = judged["shift"], judged["human_sentences"]
    table = Table("", "", title="What was measured", show_header=False)
    table.add_row(
        f"{heldout['sentences']} held-out sentences: AUC of the log-ratio (0.5 = chance)",
        f"{heldout['auc']:.3f}",
    )
    table.add_row(
        "mean log-ratio of positive / negative ones, nats",
        f"{heldout['log_ratio_positive']:+.2f} / {heldout['log_ratio_negative']:+.2f}",
    )
    table.add_row("share of ratios above 1/alpha, their upper bound", f"{heldout['over_bound']:.0%}")
    table.add_row(
        f"VADER score of {judged['count']} sampled sentences, before -> after",
        f"{judged['mean_before']:+.3f} -> {judged['mean_after']:+.3f}",
    )
    table.add_row(
        "their paired difference, 95 % interval", f"{shift['mean']:+.3f} [{shift['low']:+.3f}, {shift['high']:+.3f}]"
    )
    table.add_row(
        "for scale: people's own negative / positive sentences",
        f"{human['negative']:+.3f} / {human['positive']:+.3f}",
    )
    table.add_row(
        "share of distinct samples, before -> after",
        f"{judged['distinct_before']:.0%} -> {judged['distinct_after']:.0%}",
    )
    table.add_row("time", f"{summary['seconds']['total'] / 60:.1f} min")
    return table


def pairs_table(pairs: Sequence[tuple[str, str]]) -> Table:
    """Completions before and after, side by side."""
    table = Table("before RDRO", "after RDRO, same random numbers", title="Sampled sentences", show_lines=True)
    for before, after in pairs:
        # As plain text: a sampled sentence may hold what rich would read as markup.
        table.add_row(*(Text(text) for text in (before, after)))
    return table


def verdict(shift: dict[str, float]) -> str:
    """What the interval of the judge's shift says, in words."""
    if shift["low"] > 0:
        return (
            "The interval lies above 0: from single labelled sentences, without pairs, RDRO moved what the model "
            "writes towards what people marked as positive."
        )
    if shift["high"] < 0:
        return "The interval lies below 0: the model writes less positively than before. Something went wrong."
    return "The interval holds 0: on this run the judge does not see the shift."
