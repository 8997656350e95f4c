"""An evaluation of compressors on the terminal: facts, one table, a plot, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence

import rich.console
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from latentwire_batch.evaluation.compression.plot import Point, text_plot
from latentwire_batch.evaluation.compression.report import CompressionReport
from latentwire_batch.evaluation.compression.tables import (
    AGAINST_FULL,
    COSTS,
    GAPS,
    Column,
    cells,
    fact_lines,
    mark_of,
    notes,
    quality_name,
)


def show(console: rich.console.Console, report: CompressionReport) -> None:
    """Draw an evaluation of compressors."""
    facts = Table(show_header=False, box=None)
    for name, value in fact_lines(report).items():
        facts.add_row(name, Text(value))
    console.print(facts)
    for columns in parts(report, console.width):
        console.print()
        console.print(_table(cells(report, columns, has_marks=True)))
    console.print()
    for line in text_plot(_points(report), quality_name(report)):
        console.print(Text(line), no_wrap=True)
    console.print()
    for note in notes(report):
        console.print(Text(note))


def parts(report: CompressionReport, width: int) -> list[Sequence[Column]]:
    """Return the columns of each table: of one if the terminal is wide enough, else of several."""
    if not report.has_receiver:
        return [COSTS]
    # The bytes once.
    for groups in ([(*COSTS, *GAPS[1:], *AGAINST_FULL)], [COSTS, (*GAPS, *AGAINST_FULL)]):
        if all(_width(cells(report, group, has_marks=True)) <= width for group in groups):
            return list(groups)
    return [COSTS, GAPS, AGAINST_FULL]


def _width(lines: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 1 for column in zip(*lines, strict=True))


def _points(report: CompressionReport) -> list[Point]:
    return [
        Point(mark_of(position), row.cost.num_bytes, row.quality)
        for position, row in enumerate(report.rows)
        if row.quality is not None
    ]


def _table(lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for position, name in enumerate(lines[0]):
        justify: JustifyMethod = "right" if position else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table
