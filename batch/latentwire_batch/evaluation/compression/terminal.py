"""An evaluation of compressors on the terminal: facts, one table, a plot, and how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    Naming,
    cells,
    fact_lines,
    mark_of,
    notes,
    quality_name,
)

# Columns of the bytes and times.
_NUM_SIZES = 4


def show(console: rich.console.Console, report: CompressionReport) -> None:
    """Draw an evaluation of compressors."""
    facts = Table(show_header=False, box=None)
    for name, value in fact_lines(report).items():
        facts.add_row(name, Text(value))
    console.print(facts)
    for part in layout(report, console.width):
        console.print()
        console.print(_table(cells(report, part.columns, part.naming)))
    console.print()
    for line in text_plot(_points(report), quality_name(report)):
        console.print(Text(line), no_wrap=True)
    console.print()
    for note in notes(report):
        console.print(Text(note))


@dataclass(frozen=True)
class Part:
    """One table: its columns, and how it names the rows."""

    columns: Sequence[Column]
    naming: Naming


def layout(report: CompressionReport, width: int) -> list[Part]:
    """Return the tables: one if the terminal is wide enough for it, else several.

    Args:
        report: to show.
        width: of the terminal, in characters.
    """

    def fits(columns: Sequence[Column]) -> bool:
        return _width(cells(report, columns, "both")) <= width

    whole = (*COSTS, *GAPS[1:], *AGAINST_FULL) if report.has_receiver else COSTS
    if fits(whole):
        return [Part(whole, "both")]
    groups: list[Sequence[Column]] = [COSTS]
    if not fits(COSTS):
        groups = [COSTS[:_NUM_SIZES], COSTS[_NUM_SIZES:]]
    if report.has_receiver:
        together = (*GAPS, *AGAINST_FULL)
        groups += [together] if fits(together) else [GAPS, AGAINST_FULL]
    # The first table has the names, also where they are too long.
    return [
        Part(group, "both" if fits(group) or not number else "mark")
        for number, group in enumerate(groups)
    ]


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
