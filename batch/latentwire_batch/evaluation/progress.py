"""Progress of an evaluation: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from latentwire_batch.console import Console

_LINE_INTERVAL_S = 10.0


class EvaluationProgress:
    """Counts tasks.

    Args:
        console: where it is shown.
        total: number of tasks.
        unit: what is counted.
    """

    def __init__(self, console: Console, total: int, unit: str = "tasks") -> None:
        self._console = console
        self._total = total
        self._unit = unit
        self._done = 0
        self._shown_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Draw the bar, if there is a terminal."""
        if self._console.draws_bar:
            terminal = rich.console.Console(file=self._console.stream)
            self._bar = Progress(
                TextColumn(self._unit),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=terminal,
            )
            self._bar.add_task(self._unit, total=self._total)
            self._bar.start()
            # Plain text: square brackets in a notice are not markup.
            self._console.redirect(lambda line: terminal.print(line, markup=False, highlight=False))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()
            self._console.redirect(None)

    def advance(self) -> None:
        """Count one."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._bar.tasks[-1].id, completed=self._done)
        elif self._console.shows_progress and self._is_line_due():
            self._shown_s = time.monotonic()
            self._console.say(f"{self._done}/{self._total} {self._unit}")

    def _is_line_due(self) -> bool:
        return time.monotonic() - self._shown_s >= _LINE_INTERVAL_S
