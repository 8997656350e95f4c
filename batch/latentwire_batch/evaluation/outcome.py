"""What the command needs of an evaluation, of whatever it is: run it, and show its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import rich.console


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
