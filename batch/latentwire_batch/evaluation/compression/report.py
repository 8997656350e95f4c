"""From results to the rows of the table, and to JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latentwire_batch.evaluation.compression.codecs import FULL, Codec
from latentwire_batch.evaluation.compression.measure import Measurements, Numbers
from latentwire_batch.evaluation.compression.receive import (
    MATCHED,
    NONE,
    OTHER,
    TEXT,
    score_name,
)
from latentwire_batch.evaluation.session import Results
from latentwire_batch.evaluation.statistics import Comparison, Summary, summarize

FORMAT = "latentwire-compression"
VERSION = 1
READING = (
    "What counts at the receiver is the gap: how much likelier the plan is after its own message "
    "than after another task's message that was compressed alike. A message that says nothing of "
    "the task can make all plans likelier than no message does."
)


@dataclass(frozen=True)
class Cost:
    """A codec by itself; means over the tasks, and medians of the times.

    Attributes:
        num_bytes: of a compressed latent, scales and further arrays included.
        fraction: of the bytes of the full latents in float32.
        compress_ms: time to compress, in milliseconds.
        decompress_ms: time to estimate the full latent, in milliseconds.
        relative_error: of the estimate.
        cosine: of the estimate's rows with those of the latent.
        recall: fraction of latents whose estimate resembles its own full latent most.
        reciprocal_rank: mean reciprocal rank of the own full latent.
    """

    num_bytes: float
    fraction: float
    compress_ms: float
    decompress_ms: float | None
    relative_error: float | None
    cosine: float | None
    recall: float | None
    reciprocal_rank: float | None


@dataclass(frozen=True)
class Reception:
    """A codec at the receiver, in nats per token.

    Attributes:
        matched: after the task's own message.
        other: after another task's message, with its comparison: the gap.
        lost: the gap of this codec less that of the full latent, compared the same way; None for
            the full latent itself. A positive difference is a larger gap.
        farther: the matched value less that of the full latent; None for the full latent itself.
        gaps: this codec's gap compared with that of each other codec, by its label.
    """

    matched: Summary
    other: Summary
    gap: Comparison
    lost: Comparison | None
    farther: Comparison | None
    gaps: Mapping[str, Comparison]


@dataclass(frozen=True)
class CodecRow:
    """One codec over all tasks; `reception` is None without a bridge."""

    codec: Codec
    cost: Cost
    reception: Reception | None

    @property
    def quality(self) -> float | None:
        """The gap with a bridge, else 1 less the relative error; None without an estimate."""
        if self.reception is not None:
            return self.reception.gap.difference
        return None if self.cost.relative_error is None else 1 - self.cost.relative_error


@dataclass(frozen=True)
class CompressionReport:
    """An evaluation of compressors, as it is shown.

    Attributes:
        rows: one per codec; the full latent is the first.
        texts: likelihood after the plan as text and after nothing; empty without a bridge.
        num_tasks: tasks in every row.
        num_planned: tasks that were to be evaluated.
        num_candidates: full latents among which the compressed ones looked for their own.
        refused: reason by the id of a task that was set aside.
        is_complete: whether no signal ended the evaluation early.
        facts: JSON values on what was evaluated.
    """

    rows: Sequence[CodecRow]
    texts: Mapping[str, Summary]
    num_tasks: int
    num_planned: int
    num_candidates: int
    refused: Mapping[str, str]
    is_complete: bool
    facts: Mapping[str, Any]

    @property
    def has_receiver(self) -> bool:
        """Whether a receiver read the messages."""
        return self.rows[0].reception is not None

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "unit": "nats per token" if self.has_receiver else None,
            "rows": [_row_json(row) for row in self.rows],
            "messages": {name: _summary_json(each) for name, each in self.texts.items()},
            "num_tasks": self.num_tasks,
            "num_skipped": len(self.refused),
            "num_candidates": self.num_candidates,
            "is_complete": self.is_complete,
            "reading": READING,
            **self.facts,
        }


def make_compression_report(
    measured: Measurements,
    received: Results | None,
    num_planned: int,
    seed: int,
    facts: Mapping[str, Any],
    *,
    is_complete: bool,
) -> CompressionReport:
    """Summarize the results.

    Args:
        measured: of the tasks.
        received: likelihoods of at least one task, which are then the tasks of every row; None:
            no receiver read the messages.
        num_planned: tasks that were to be evaluated.
        seed: of the intervals.
        facts: see `CompressionReport`.
        is_complete: see `CompressionReport`.
    """
    codecs = measured.codecs
    receptions: Sequence[Reception | None] = [None] * len(codecs)
    texts: Mapping[str, Summary] = {}
    indexes = sorted(measured.numbers)
    refused = dict(measured.refused)
    if received is not None:
        finished = [each for each in received.in_order if each.index in measured.numbers]
        indexes = [each.index for each in finished]
        values = {
            name: np.array([each.scores[name].per_token for each in finished])
            for name in finished[0].scores
        }
        receptions = _receptions([codec.label for codec in codecs], values, seed)
        both = {name: list(values[name]) for name in (TEXT, NONE)}
        texts = summarize(both, TEXT, seed, is_loss=True)
        refused |= received.refused
    return CompressionReport(
        rows=[
            CodecRow(codec, _cost(measured, position, indexes), reception)
            for position, (codec, reception) in enumerate(zip(codecs, receptions, strict=True))
        ],
        texts=texts,
        num_tasks=len(indexes),
        num_planned=num_planned,
        num_candidates=measured.num_candidates,
        refused=refused,
        is_complete=is_complete,
        facts=facts,
    )


def _cost(measured: Measurements, position: int, indexes: Sequence[int]) -> Cost:
    found = measured.of(position, indexes)
    full_bytes = sum(measured.full_bytes[index] for index in indexes)
    compress_ms = _middle(found["compress_ms"])
    assert compress_ms is not None
    return Cost(
        num_bytes=float(found["num_bytes"].mean()),
        fraction=float(found["num_bytes"].sum()) / full_bytes,
        compress_ms=compress_ms,
        decompress_ms=_middle(found["decompress_ms"]),
        relative_error=_mean(found["relative_error"]),
        cosine=_mean(found["cosine"]),
        recall=_mean(found["recall"]),
        reciprocal_rank=_mean(found["reciprocal_rank"]),
    )


def _mean(values: Numbers) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _middle(values: Numbers) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else None


def _receptions(labels: Sequence[str], values: Mapping[str, Numbers], seed: int) -> list[Reception]:
    matched = {label: values[score_name(MATCHED, label)] for label in labels}
    other = {label: values[score_name(OTHER, label)] for label in labels}
    gaps = {label: list(other[label] - matched[label]) for label in labels}
    # Each codec's gap against every other's: a larger gap is better.
    against = {label: summarize(gaps, label, seed, is_loss=False) for label in labels}
    farther = summarize({each: list(matched[each]) for each in labels}, FULL, seed, is_loss=True)
    found = []
    for label in labels:
        pair = {MATCHED: list(matched[label]), OTHER: list(other[label])}
        both = summarize(pair, MATCHED, seed, is_loss=True)
        gap = both[OTHER].comparison
        assert gap is not None
        compared = {each: against[each][label].comparison for each in labels if each != label}
        found.append(
            Reception(
                matched=both[MATCHED],
                other=both[OTHER],
                gap=gap,
                lost=compared.get(FULL),
                farther=farther[label].comparison,
                gaps={each: value for each, value in compared.items() if value is not None},
            )
        )
    return found


def _row_json(row: CodecRow) -> dict[str, Any]:
    value = {**row.codec.to_json(), **asdict(row.cost)}
    reception = row.reception
    if reception is None:
        return value
    return value | {
        "matched": _summary_json(reception.matched),
        "other": _summary_json(reception.other),
        "gap": _comparison_json(reception.gap),
        "against_full": {
            "gap": _comparison_json(reception.lost),
            "matched": _comparison_json(reception.farther),
        },
        "gap_against": {
            label: _comparison_json(comparison) for label, comparison in reception.gaps.items()
        },
    }


def _summary_json(summary: Summary) -> dict[str, Any]:
    return {"nll": summary.mean, "nll_interval": list(summary.interval)}


def _comparison_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return asdict(comparison) | {"interval": list(comparison.interval)}
