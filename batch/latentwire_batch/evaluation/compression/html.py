"""An evaluation of compressors as one HTML file that loads nothing."""

from __future__ import annotations

from html import escape

from latentwire_batch.evaluation.compression.report import CompressionReport
from latentwire_batch.evaluation.compression.tables import (
    AGAINST_FULL,
    COSTS,
    GAPS,
    cells,
    fact_lines,
    notes,
    quality_name,
)
from latentwire_batch.evaluation.html import table_of
from latentwire_batch.inspection.page import page
from latentwire_batch.inspection.svg import Axis, Named, named_points


def build_page(report: CompressionReport) -> str:
    """Build the page."""
    facts = "\n".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in fact_lines(report).items()
    )
    columns = (*COSTS, *GAPS[1:], *AGAINST_FULL) if report.has_receiver else COSTS
    known = [
        Named(row.codec.label, row.cost.num_bytes, row.quality)
        for row in report.rows
        if row.quality is not None
    ]
    name = quality_name(report)
    parts = [
        f"<table>{facts}</table>",
        "<h2>Quality against bytes</h2>",
        named_points(known, Axis("bytes per latent, logarithmic", name)),
        "<h2>All numbers</h2>",
        table_of(cells(report, columns, "label")),
        *(f'<p class="note">{escape(note)}</p>' for note in notes(report)),
    ]
    return page("Evaluation of compressors", "\n".join(parts))
