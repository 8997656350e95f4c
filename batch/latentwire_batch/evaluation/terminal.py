"""An evaluation on the terminal: facts, tables, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence

import rich.console
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from latentwire_batch.evaluation.messages import MATCHED
from latentwire_batch.evaluation.report import (
    Report,
    answer_cells,
    fact_lines,
    likelihood_cells,
    notes,
)


def show(console: rich.console.Console, report: Report) -> None:
    """Draw an evaluation."""
    facts = Table(show_header=False, box=None)
    for name, value in fact_lines(report).items():
        facts.add_row(name, Text(value))
    console.print(facts)
    console.print()
    console.print(_table("likelihood of the sender's plan", likelihood_cells(report)))
    if report.answer_rows:
        console.print()
        title = f"answers of the receiver, {report.num_answered} tasks"
        console.print(_table(title, answer_cells(report)))
    console.print()
    for note in notes(report):
        console.print(Text(note))


def _table(title: str, cells: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for position, name in enumerate(cells[0]):
        justify: JustifyMethod = "right" if position else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for row in cells[1:]:
        style = "bold" if row[0] == MATCHED else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table
