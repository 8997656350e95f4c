"""The rows of an evaluation of compressors as texts, for the terminal and the page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from latentwire_batch.evaluation.compression.receive import NONE, TEXT
from latentwire_batch.evaluation.compression.report import (
    READING,
    CodecRow,
    CompressionReport,
)
from latentwire_batch.evaluation.outcome import missing_tasks
from latentwire_batch.evaluation.statistics import Comparison

Naming = Literal["label", "mark", "both"]

_MARKS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Column:
    """One column: its head, and how it shows a row."""

    head: str
    show: Callable[[CodecRow], str]


def _number(form: str, value: float | None) -> str:
    return "" if value is None else format(value, form)


def _size(row: CodecRow) -> str:
    return f"{row.cost.num_bytes:,.0f}"


def _interval(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return f"[{', '.join(f'{end:+.2f}' for end in comparison.interval)}]"


COSTS = (
    Column("bytes", _size),
    Column("of full", lambda row: f"{row.cost.fraction:.2%}"),
    Column("ms in", lambda row: f"{row.cost.compress_ms:.2f}"),
    Column("ms out", lambda row: _number(".2f", row.cost.decompress_ms)),
    Column("error", lambda row: _number(".3f", row.cost.relative_error)),
    Column("cosine", lambda row: _number(".3f", row.cost.cosine)),
    Column("recall", lambda row: _number(".3f", row.cost.recall)),
    Column("MRR", lambda row: _number(".3f", row.cost.reciprocal_rank)),
)


def _gap(row: CodecRow) -> Comparison:
    assert row.reception is not None
    return row.reception.gap


def _lost(row: CodecRow) -> Comparison | None:
    assert row.reception is not None
    return row.reception.lost


def _lost_number(form: str, name: str) -> Callable[[CodecRow], str]:
    def show(row: CodecRow) -> str:
        lost = _lost(row)
        return "" if lost is None else format(getattr(lost, name), form)

    return show


def _mean(name: str) -> Callable[[CodecRow], str]:
    return lambda row: f"{getattr(row.reception, name).mean:.2f}"


GAPS = (
    Column("bytes", _size),
    Column("matched", _mean("matched")),
    Column("other", _mean("other")),
    Column("gap", lambda row: f"{_gap(row).difference:+.2f}"),
    Column("95 %", lambda row: _interval(_gap(row))),
    Column("wins", lambda row: str(_gap(row).wins)),
    Column("losses", lambda row: str(_gap(row).losses)),
    Column("p", lambda row: f"{_gap(row).p:.2g}"),
)
AGAINST_FULL = (
    Column("gap - full", _lost_number("+.3f", "difference")),
    Column("95 %", lambda row: _interval(_lost(row))),
    Column("larger", _lost_number("d", "losses")),
    Column("smaller", _lost_number("d", "wins")),
    Column("p", _lost_number(".2g", "p")),
)


def mark_of(position: int) -> str:
    """Return the letter of a row in the plot on the terminal."""
    return _MARKS[position] if position < len(_MARKS) else "*"


def cells(report: CompressionReport, columns: Sequence[Column], naming: Naming) -> list[list[str]]:
    """Return a table as texts, its head first.

    Args:
        report: its rows.
        columns: after the name.
        naming: what names a row: its label, its letter in the plot, or both.
    """
    lines = [["" if naming == "mark" else "compressor", *(column.head for column in columns)]]
    for position, row in enumerate(report.rows):
        names = {"mark": mark_of(position), "label": row.codec.label}
        name = " ".join(names.values()) if naming == "both" else names[naming]
        lines.append([name, *(column.show(row) for column in columns)])
    return lines


def notes(report: CompressionReport) -> list[str]:
    """Return what a reader of the tables has to know, one sentence or two each."""
    found = [
        "bytes are those of a latent's values, scales and further arrays; times are medians; error "
        "is the Frobenius norm of the difference to the full latent, relative to that of the full "
        "latent, and cosine the mean over its rows; recall is the fraction of latents whose "
        f"estimate resembles its own full latent most, of {report.num_candidates}; MRR is the "
        "mean reciprocal rank of its own."
    ]
    if report.has_receiver:
        found.append(
            "matched and other are the nll in nats per token after the task's own message and "
            "after another task's; gap is other less matched; wins counts the tasks on which "
            "matched is better; gap - full compares the gap with that of the full latent on the "
            "same tasks, and larger counts the tasks on which it is the larger one; p is the "
            "two-sided sign test's; the intervals come from resampling the tasks."
        )
        found.append(READING)
    return found + missing_tasks(report)


def fact_lines(report: CompressionReport) -> dict[str, str]:
    """Return the facts in words, by name."""
    facts = report.facts
    lines = {
        "tasks": f"{report.num_tasks} ({facts['split']['meaning']})",
        "sender": facts["sender"]["model"] or "not stated",
    }
    if not report.has_receiver:
        return lines
    bridge = facts["bridge"]
    return lines | {
        "bridge": f"{bridge['name']} ({bridge['kind']}, {bridge['content_hash'][:12]})",
        "receiver": facts["receiver"]["model"],
        "prompt": f"{facts['prompt']['before']!r} + message + {facts['prompt']['after']!r}",
        "baselines": f"{report.texts[NONE].mean:.2f} nats per token after nothing, "
        f"{report.texts[TEXT].mean:.2f} after the plan's text",
    }


def quality_name(report: CompressionReport) -> str:
    """Return what the plot shows upwards."""
    return "gap, nats per token" if report.has_receiver else "1 - relative error"
