"""An inspection on the terminal: a table of facts and two charts of bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.console
from rich.table import Table
from rich.text import Text

from latentwire_batch.inspection.findings import Bin

_BAR_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(
    console: rich.console.Console,
    found: Mapping[str, str],
    lengths: Sequence[Bin],
    norms: Sequence[tuple[int, float]],
    problems: Sequence[str],
) -> None:
    """Draw an inspection.

    Args:
        console: to draw on.
        found: facts by name.
        lengths: histogram of hidden rows per latent.
        norms: mean norm of hidden rows, by the index of the first row that it averages.
        problems: of the dataset.
    """
    table = Table(show_header=False, box=None)
    for name, value in found.items():
        table.add_row(name, Text(value))
    console.print(table)
    bars = [(item.label, float(item.count), f"{item.count:,}") for item in lengths]
    _chart(console, "rows by length of their latent", bars)
    _chart(console, "mean norm by hidden row", [(str(t), norm, f"{norm:.3f}") for t, norm in norms])
    for problem in problems:
        console.print(Text(f"! {problem}", style="bold red"))
    if not problems:
        console.print(Text("all values are finite, and no id occurs twice", style="green"))


def _chart(
    console: rich.console.Console, title: str, bars: Sequence[tuple[str, float, str]]
) -> None:
    if not bars:
        return
    highest = max(value for _, value, _ in bars) or 1.0
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(justify="right")
    for label, value, shown in bars:
        table.add_row(label, Text(_bar(value / highest), style="cyan"), shown)
    console.print()
    console.print(table)


def _bar(share: float) -> str:
    num_eighths = round(share * _BAR_WIDTH * 8)
    return (_EIGHTHS[-1] * (num_eighths // 8) + _EIGHTHS[num_eighths % 8]).rstrip()
