"""Progress of a fit: a bar on a terminal, lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_INTERVAL_S = 10.0


class FitProgress:
    """Shows one phase after the other.

    Args:
        say: writes a line where standard error is not a terminal.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
        self._phase, self._total, self._done = "", 0, 0
        self._shown_s = 0.0

    def __enter__(self) -> FitProgress:
        """Start to draw."""
        if self._bar is not None:
            self._bar.start()
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

    def begin(self, phase: str, total: int, done: int = 0) -> None:
        """Begin a phase.

        Args:
            phase: what it does, such as "training".
            total: advances until its end.
            done: those that an earlier run has done.
        """
        self._phase, self._total, self._done = phase, total, done
        self._shown_s = time.monotonic()
        if self._bar is not None:
            self._bar.add_task(phase, total=total, completed=done, note="")
        else:
            self._say(f"{phase}: {done}/{total}")

    def advance(self, note: str = "") -> None:
        """Count one step of the phase.

        Args:
            note: shown with it.
        """
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._bar.tasks[-1].id, completed=self._done, note=note)
        elif time.monotonic() - self._shown_s >= _LINE_INTERVAL_S:
            self._shown_s = time.monotonic()
            self._say(f"{self._phase}: {self._done}/{self._total} {note}".rstrip())
