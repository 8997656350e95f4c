"""What the command needs of an evaluation, of whatever it is: run it, and show its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import rich.console


class Numbers(Protocol):
    """A report on the tasks of an evaluation."""

    @property
    def num_tasks(self) -> int:
        """Tasks with numbers."""

    @property
    def num_planned(self) -> int:
        """Tasks that were to be evaluated."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Reason by the id of a task that was set aside."""

    @property
    def is_complete(self) -> bool:
        """Whether no signal ended the evaluation early."""

    def to_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""


_Report = TypeVar("_Report", bound=Numbers)


@dataclass(frozen=True)
class Outcome:
    """Numbers that can be shown.

    Attributes:
        num_tasks: tasks that they are of.
        num_planned: tasks that were to be evaluated.
        show: draws them on a terminal.
        to_json: returns them as JSON values.
        page: returns them as an HTML page.
    """

    num_tasks: int
    num_planned: int
    show: Callable[[rich.console.Console], None]
    to_json: Callable[[], dict[str, Any]]
    page: Callable[[], str]


def outcome_of(
    report: _Report,
    show: Callable[[rich.console.Console, _Report], None],
    build_page: Callable[[_Report], str],
) -> Outcome:
    """Return the outcome that shows a report."""
    return Outcome(
        report.num_tasks,
        report.num_planned,
        show=lambda console: show(console, report),
        to_json=report.to_json,
        page=partial(build_page, report),
    )


def missing_tasks(report: Numbers) -> list[str]:
    """Return what a reader has to know of tasks without numbers, one sentence each."""
    found = []
    if report.refused:
        first = next(iter(report.refused.values()))
        found.append(f"{len(report.refused)} tasks were set aside; the first: {first}")
    if not report.is_complete:
        found.append(
            f"The evaluation was interrupted: {report.num_tasks} of {report.num_planned} tasks."
        )
    return found


class Evaluation(Protocol):
    """One evaluation, whose bridge, compressors and dataset were checked."""

    async def run(self) -> None:
        """Evaluate all tasks; what was found stays when this fails or is cancelled."""

    @property
    def has_numbers(self) -> bool:
        """Whether there is a task to show numbers of."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Reason by the id of a task that was set aside."""

    def outcome(self, *, is_complete: bool) -> Outcome:
        """Summarize what was found.

        Args:
            is_complete: whether all tasks were evaluated.
        """
