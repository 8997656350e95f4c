"""An inspection as one HTML file that loads nothing: charts are inline SVG, all text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import numpy as np

from latentwire_batch.inspection.findings import Bin
from latentwire_batch.inspection.page import page
from latentwire_batch.inspection.statistics import Inspection, Sample, project
from latentwire_batch.inspection.svg import Axis, bars, line, points

_MAX_TEXT_CHARS = 600
_SAMPLE_NAMES = ("row", "task_id", "hidden rows", "task", "plan")

_BODY = Template("""\
$verdict
<table>$facts</table>
<h2>Length of the latents</h2>
$lengths
<h2>Norm by hidden row</h2>
<p class="note">Mean Euclidean norm of row t; the band is one standard deviation on either side.</p>
$norms
<h2>Mean latents</h2>
<p class="note">$means_note</p>
$means
<h2>Samples</h2>
<table class="samples">
<tr>$sample_names</tr>
$samples
</table>
""")


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        title: names the dataset, without its path.
        found: facts by name.
        lengths: histogram of hidden rows per latent.
        problems: of the dataset.
        inspection: of the dataset.
    """

    title: str
    found: Mapping[str, str]
    lengths: Sequence[Bin]
    problems: Sequence[str]
    inspection: Inspection


def build_page(report: Report) -> str:
    """Build the page."""
    inspection = report.inspection
    num_means = len(inspection.means)
    body = _BODY.substitute(
        verdict=_verdict(report.problems),
        facts="\n".join(
            f"<tr>{_cell('th', n)}{_cell('td', v)}</tr>" for n, v in report.found.items()
        ),
        lengths=bars(
            [(item.label, item.count) for item in report.lengths], Axis("hidden rows", "rows")
        ),
        norms=_norms(inspection),
        means_note=(
            f"The mean of each latent on the first two principal components, for {num_means:,} of "
            f"{inspection.num_rows:,} rows. Longer latents are stronger."
        ),
        means=points(
            project(inspection.means),
            np.array([mean.num_hidden_rows for mean in inspection.means]),
            Axis("first component", "second component"),
        ),
        sample_names="".join(_cell("th", name) for name in _SAMPLE_NAMES),
        samples="\n".join(_sample(s) for s in sorted(inspection.samples, key=lambda s: s.row)),
    )
    return page(report.title, body)


def _verdict(problems: Iterable[str]) -> str:
    lines = "".join(f'<li class="bad">{escape(problem)}</li>' for problem in problems)
    if lines:
        return f"<ul>{lines}</ul>"
    return '<p class="good">All values are finite, and no id occurs twice.</p>'


def _norms(inspection: Inspection) -> str:
    norms = inspection.norms
    return line(norms.means, norms.deviations, Axis("hidden row t", "mean norm"))


def _sample(sample: Sample) -> str:
    values = (
        str(sample.row),
        sample.task_id,
        str(sample.num_hidden_rows),
        _shortened(sample.task),
        _shortened(sample.plan),
    )
    cells = "".join(
        f'<td class="text" data-name="{name}">{escape(value)}</td>'
        for name, value in zip(_SAMPLE_NAMES, values, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _cell(tag: str, text: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>"


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARS else text[:_MAX_TEXT_CHARS] + " ..."
