"""From results to numbers and words: the content of the table, the JSON file and the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire_batch.evaluation.messages import ANSWERED_NAMES, MATCHED, NAMES
from latentwire_batch.evaluation.outcome import missing_tasks
from latentwire_batch.evaluation.session import Results, TaskResult
from latentwire_batch.evaluation.statistics import Comparison, Interval, Summary, summarize

FORMAT = "latentwire-evaluation"
VERSION = 1
READING = (
    "A latent carries something of its task if its plan is likelier after it than after nothing "
    "and, above all, than after another task's latent. Likelihood that moves does not prove that "
    "decisions move: --answers compares what the receiver then answers."
)


@dataclass(frozen=True)
class Row:
    """One message over all tasks.

    Attributes:
        name: of the message, one of `NAMES`.
        summary: of its values by task.
        token_mean: for likelihoods, the mean over all tokens of all plans; None for answers.
    """

    name: str
    summary: Summary
    token_mean: float | None = None


@dataclass(frozen=True)
class Report:
    """An evaluation, as it is shown.

    Attributes:
        rows: likelihood after each message, in nats per token.
        answer_rows: fraction of tasks that the receiver solves after each message; empty when it
            was not to solve them.
        num_tasks: tasks with likelihoods.
        num_answered: of these, tasks that the receiver was to solve.
        num_planned: tasks that were to be evaluated.
        refused: reason by the id of a task that was set aside.
        is_complete: whether no signal ended the evaluation early.
        facts: JSON values on what was evaluated: bridge, receiver, sender, dataset and settings.
    """

    rows: Sequence[Row]
    answer_rows: Sequence[Row]
    num_tasks: int
    num_answered: int
    num_planned: int
    refused: Mapping[str, str]
    is_complete: bool
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "unit": "nats per token",
            "rows": [_likelihood_json(row) for row in self.rows],
            "num_tasks": self.num_tasks,
            "num_skipped": len(self.refused),
            "is_complete": self.is_complete,
            "reading": READING,
            **self.facts,
        }
        if self.answer_rows:
            value["answers"] = {
                "num_tasks": self.num_answered,
                "rows": [_answer_json(row) for row in self.answer_rows],
            }
        return value


def make_report(
    results: Results, num_planned: int, seed: int, facts: Mapping[str, Any], *, is_complete: bool
) -> Report:
    """Summarize the results.

    Args:
        results: of at least one task.
        num_planned: tasks that were to be evaluated.
        seed: of the intervals.
        facts: see `Report`.
        is_complete: see `Report`.
    """
    finished = results.in_order
    solved = [result.is_right for result in finished if result.is_right is not None]
    answer_rows: list[Row] = []
    if solved:
        right = {name: [float(each[name]) for each in solved] for name in ANSWERED_NAMES}
        found = summarize(right, MATCHED, seed, is_loss=False)
        answer_rows = [Row(name, found[name]) for name in ANSWERED_NAMES]
    return Report(
        rows=_likelihood_rows(finished, seed),
        answer_rows=answer_rows,
        num_tasks=len(finished),
        num_answered=len(solved),
        num_planned=num_planned,
        refused=results.refused,
        is_complete=is_complete,
        facts=facts,
    )


def _likelihood_rows(finished: Sequence[TaskResult], seed: int) -> list[Row]:
    per_token = {name: [each.scores[name].per_token for each in finished] for name in NAMES}
    found = summarize(per_token, MATCHED, seed, is_loss=True)
    num_tokens = sum(each.scores[MATCHED].num_tokens for each in finished)
    return [
        Row(name, found[name], sum(each.scores[name].nll for each in finished) / num_tokens)
        for name in NAMES
    ]


def _likelihood_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "nll": row.summary.mean,
        "nll_interval": list(row.summary.interval),
        "nll_over_tokens": row.token_mean,
        **_comparison_json(row.summary.comparison),
    }


def _answer_json(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "accuracy": row.summary.mean,
        "accuracy_interval": list(row.summary.interval),
        **_comparison_json(row.summary.comparison),
    }


def _comparison_json(comparison: Comparison | None) -> dict[str, Any]:
    """Return a comparison with the matched latent; null values for the matched latent itself."""
    names = ("difference", "difference_interval", "wins", "losses", "ties", "p")
    if comparison is None:
        return dict.fromkeys(names)
    values = (
        comparison.difference,
        list(comparison.interval),
        comparison.wins,
        comparison.losses,
        comparison.ties,
        comparison.p,
    )
    return dict(zip(names, values, strict=True))


def likelihood_cells(report: Report) -> list[tuple[str, ...]]:
    """Return the table of likelihoods as texts, its head first."""
    head = ("message", "nll", "95 %", "diff", "95 %", "wins", "losses", "p")
    return [head, *(_cells(row) for row in report.rows)]


def answer_cells(report: Report) -> list[tuple[str, ...]]:
    """Return the table of answers as texts, its head first."""
    head = ("message", "solved", "95 %", "diff", "95 %", "wins", "losses", "p")
    return [head, *(_cells(row) for row in report.answer_rows)]


def _cells(row: Row) -> tuple[str, ...]:
    comparison = row.summary.comparison
    start = (row.name, f"{row.summary.mean:.2f}", _interval(row.summary.interval))
    if comparison is None:
        return (*start, "", "", "", "", "")
    return (
        *start,
        f"{comparison.difference:+.2f}",
        _interval(comparison.interval, signed=True),
        str(comparison.wins),
        str(comparison.losses),
        f"{comparison.p:.2g}",
    )


def _interval(interval: Interval, *, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    return f"[{', '.join(format(end, form) for end in interval)}]"


def notes(report: Report) -> list[str]:
    """Return what a reader of the tables has to know, one sentence or two each."""
    return [
        "nll is in nats per token; diff is the message less the matched latent; wins counts the "
        "tasks on which the matched latent is better than the message; p is the two-sided sign "
        "test's; the intervals come from resampling the tasks.",
        READING,
        *missing_tasks(report),
    ]


def fact_lines(report: Report) -> dict[str, str]:
    """Return the facts in words, by name."""
    facts = report.facts
    bridge, receiver, sender = facts["bridge"], facts["receiver"], facts["sender"]
    split = facts["split"]
    return {
        "tasks": f"{report.num_tasks} ({split['meaning']})",
        "bridge": f"{bridge['name']} ({bridge['kind']}, {bridge['content_hash'][:12]})",
        "sender": sender["model"] or "not stated",
        "receiver": receiver["model"],
        "prompt": f"{facts['prompt']['before']!r} + message + {facts['prompt']['after']!r}",
    }
