"""Progress of the run: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from latentwire_batch.console import Console
from latentwire_batch.dispatch.failure_report import FailureReport
from latentwire_batch.dispatch.tally import Counts, Tally

_LINE_INTERVAL_S = 5.0
# While no row settles.
_IDLE_LINE_INTERVAL_S = 30.0
REFRESH_INTERVAL_S = 1.0
"""Between two looks at the clock, while no row settles."""


@dataclass(frozen=True)
class RowFailure:
    """A failed row as it is shown.

    Attributes:
        index: of the row.
        code: as in `failures.jsonl`.
        message: as there.
    """

    index: int
    code: str
    message: str


class OtherProcesses(Protocol):
    """The other processes of a run whose progress is shown in one display."""

    def counts(self) -> Counts:
        """Return their counts so far, together."""
        ...

    def take_failures(self) -> Sequence[RowFailure]:
        """Return the first failed rows of each kind that were not returned before."""
        ...


class NoOthers:
    """A run of one process."""

    def counts(self) -> Counts:
        """Return nothing."""
        return Counts()

    def take_failures(self) -> Sequence[RowFailure]:
        """Return nothing."""
        return ()


class ProgressReport:
    """Shows rows, tokens per second, failures and the time left.

    Args:
        console: where it is shown.
        total: rows of the input.
        settled: rows that were settled before this run.
        clock: monotonic seconds.
        others: the other processes, whose rows `total` and `settled` include.
        num_unsettled: rows that are left to this process; None: all that are.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        settled: int,
        clock: Callable[[], float] = time.monotonic,
        others: OtherProcesses | None = None,
        num_unsettled: int | None = None,
    ) -> None:
        self._console = console
        self._clock = clock
        self._total = total
        self._settled_before = settled
        self._tally = Tally(total - settled if num_unsettled is None else num_unsettled, clock)
        self._others = others or NoOthers()
        self._shown_settled = settled
        self._failures = FailureReport(console.say)
        self._shown_s = clock()
        self._is_draining = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the clock and, on a terminal, draw the bar."""
        self._tally.start_clock()
        self._shown_s = self._clock()
        if self._console.draws_bar:
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop drawing, and print the final numbers."""
        self._show_failures()
        if self._bar is not None:
            self._bar.stop()
            self._console.redirect(None)
        counts = self._counts()
        self._failures.close(counts.failures)
        self._console.say(self._line(counts))

    async def keep_showing(self) -> None:
        """Show that time passes, also while no row settles; runs until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            self._show()

    def drain(self) -> str:
        """From now on, estimate the time of the rows in flight alone; describe them."""
        self._is_draining = True
        counts = self._counts()
        rows = f"{counts.num_in_flight} row{'s' * (counts.num_in_flight != 1)}"
        if counts.seconds_in_flight is None:
            return f"{rows}, at most --timeout"
        return f"{rows}, about {max(1, round(counts.seconds_in_flight))} s"

    def row_started(self, index: int) -> None:
        """Count a row as sent."""
        self._tally.row_started(index)

    def row_ended(self, index: int) -> None:
        """Count a row as no longer in flight."""
        self._tally.row_ended(index)

    def row_finished(self, completion_tokens: int, index: int | None = None) -> None:
        """Count a finished row."""
        self._tally.row_finished(completion_tokens, index)
        self._show()

    def row_failed(self, index: int, code: str, message: str = "") -> None:
        """Count and show a failed row."""
        self._tally.row_failed(code)
        self._failures.add(index, code, message)
        self._show()

    def _counts(self) -> Counts:
        return self._tally.counts() + self._others.counts()

    def _draw(self) -> None:
        terminal = rich.console.Console(file=self._console.stream)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[time_left]}"),
            console=terminal,
        )
        counts = self._counts()
        self._task = self._bar.add_task(
            "rows",
            total=self._total,
            completed=self._settled_before,
            rate=self._rate(counts),
            failed=0,
            time_left=self._time_left(counts),
        )
        self._bar.start()
        # Plain text: square brackets in a notice are not markup.
        self._console.redirect(lambda line: terminal.print(line, markup=False, highlight=False))

    def _show(self) -> None:
        self._show_failures()
        if self._bar is not None and self._task is not None:
            counts = self._counts()
            self._bar.update(
                self._task,
                completed=self._settled_before + counts.settled,
                rate=self._rate(counts),
                failed=counts.failed,
                time_left=self._time_left(counts),
            )
        elif self._is_line_due():
            counts = self._counts()
            self._shown_s = self._clock()
            self._shown_settled = self._num_settled
            self._console.say(f"{self._line(counts)}, {self._time_left(counts)}")

    def _show_failures(self) -> None:
        for failure in self._others.take_failures():
            self._failures.add(failure.index, failure.code, failure.message)

    @property
    def _num_settled(self) -> int:
        return self._settled_before + self._tally.num_settled + self._others.counts().settled

    def _is_line_due(self) -> bool:
        waited_s = self._clock() - self._shown_s
        # Most rows come before the next line.
        if not self._console.shows_progress or waited_s < _LINE_INTERVAL_S:
            return False
        return waited_s >= _IDLE_LINE_INTERVAL_S or self._num_settled != self._shown_settled

    def _line(self, counts: Counts) -> str:
        settled = self._settled_before + counts.settled
        in_flight = f", {counts.num_in_flight} in flight" if counts.num_in_flight else ""
        rate = self._rate(counts)
        return f"{settled}/{self._total} rows, {rate}, {counts.failed} failed{in_flight}"

    def _rate(self, counts: Counts) -> str:
        if counts.num_in_flight and not counts.finished:
            return "no row finished yet"
        seconds = self._tally.elapsed_s
        tokens = counts.tokens + counts.tokens_in_flight
        return f"{tokens / seconds:.1f} tokens/s" if seconds > 0 else "0 tokens/s"

    def _time_left(self, counts: Counts) -> str:
        estimate_s = counts.seconds_in_flight if self._is_draining else counts.seconds_left
        if estimate_s is None:
            return "ETA unknown"
        # An estimate of 0 s is wrong while a row is missing.
        seconds = max(round(estimate_s), 1 if counts.num_in_flight else 0)
        return f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
