"""An evaluation as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from latentwire_batch.evaluation.messages import MEANINGS
from latentwire_batch.evaluation.report import (
    Report,
    Row,
    answer_cells,
    fact_lines,
    likelihood_cells,
    notes,
)
from latentwire_batch.inspection.page import page
from latentwire_batch.inspection.svg import Mark, intervals


def build_page(report: Report) -> str:
    """Build the page."""
    facts = "\n".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in fact_lines(report).items()
    )
    parts = [
        *(f"<p>{escape(note)}</p>" for note in notes(report)[1:]),
        f"<table>{facts}</table>",
        "<h2>Likelihood of the sender's plan</h2>",
        '<p class="note">Mean negative log-likelihood over the tasks, and its 95 % interval. '
        "Less is likelier.</p>",
        intervals(_marks(report.rows), "nats per token"),
        table_of(likelihood_cells(report)),
    ]
    if report.answer_rows:
        parts += [
            "<h2>Answers of the receiver</h2>",
            f'<p class="note">Fraction of {report.num_answered} tasks that the receiver solves, '
            "and its 95 % interval.</p>",
            intervals(_marks(report.answer_rows), "fraction solved"),
            table_of(answer_cells(report)),
        ]
    parts.append(_meanings())
    parts.append(f'<p class="note">{escape(notes(report)[0])}</p>')
    return page(f"Evaluation of the bridge {report.facts['bridge']['name']}", "\n".join(parts))


def _meanings() -> str:
    lines = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(meaning)}</td></tr>"
        for name, meaning in MEANINGS.items()
    )
    return f"<h2>The messages</h2><table>{lines}</table>"


def _marks(rows: Sequence[Row]) -> list[Mark]:
    return [Mark(row.name, row.summary.mean, *row.summary.interval) for row in rows]


def table_of(cells: Sequence[Sequence[str]]) -> str:
    """Return a table.

    Args:
        cells: as texts, the head first.
    """
    head, *rows = cells
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    # It scrolls by itself where a screen is narrow.
    return f'<div class="wide"><table>{body}</table></div>'
