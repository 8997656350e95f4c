"""How a worker tells the first process what it has done: a line of JSON a second, on a pipe."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TextIO

from latentwire_batch.dispatch.failure_report import NUM_SHOWN
from latentwire_batch.dispatch.progress import REFRESH_INTERVAL_S, RowFailure
from latentwire_batch.dispatch.tally import Counts, Tally


@dataclass(frozen=True)
class Report:
    """One line.

    Attributes:
        num_given: rows that were left to the worker when it began.
        counts: since then.
        failures: the first failed rows of each kind that no earlier line has.
    """

    num_given: int
    counts: Counts
    failures: Sequence[RowFailure] = ()

    @classmethod
    def from_line(cls, line: str) -> Report | None:
        """Read what `to_line` returned; None for anything else, such as a library's output."""
        try:
            value: dict[str, Any] = json.loads(line)
            counts = value["counts"]
            return cls(
                int(value["num_given"]),
                Counts(**{**counts, "failures": Counter(counts["failures"])}),
                [RowFailure(**failure) for failure in value["failures"]],
            )
        except (ValueError, TypeError, LookupError):
            return None

    def to_line(self) -> str:
        """Return the report as one line, with its end."""
        failures = [vars(failure) for failure in self.failures]
        value = {"num_given": self.num_given, "counts": vars(self.counts), "failures": failures}
        return json.dumps(value) + "\n"


class ReportingProgress:
    """The progress of a worker's session, which the first process shows.

    Args:
        stream: a pipe to the first process.
        num_given: rows that are left to this worker.
        clock: monotonic seconds.
    """

    def __init__(
        self, stream: TextIO, num_given: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._num_given = num_given
        self._tally = Tally(num_given, clock)
        self._num_failed: Counter[str] = Counter()
        self._failures: list[RowFailure] = []

    def __enter__(self) -> Self:
        """Report the rows that are left."""
        self._tally.start_clock()
        self._report()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Report the final numbers."""
        self._report()

    async def keep_showing(self) -> None:
        """Report once a second, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            self._report()

    def drain(self) -> None:
        """Leave the notice to the first process, which knows the rows of all."""

    def row_started(self, index: int) -> None:
        """Count a row as sent."""
        self._tally.row_started(index)

    def row_ended(self, index: int) -> None:
        """Count a row as no longer in flight."""
        self._tally.row_ended(index)

    def row_finished(self, completion_tokens: int, index: int | None = None) -> None:
        """Count a finished row."""
        self._tally.row_finished(completion_tokens, index)

    def row_failed(self, index: int, code: str, message: str = "") -> None:
        """Count a failed row."""
        self._tally.row_failed(code)
        self._num_failed[code] += 1
        if self._num_failed[code] <= NUM_SHOWN:
            self._failures.append(RowFailure(index, code, message))

    def _report(self) -> None:
        report = Report(self._num_given, self._tally.counts(), self._failures)
        self._failures = []
        try:
            self._stream.write(report.to_line())
            self._stream.flush()
        except OSError:
            # The first process has ended, which the rendezvous notices.
            pass


class WorkerCounts:
    """What one worker has reported, its earlier processes included."""

    def __init__(self) -> None:
        self._first_given: int | None = None
        self._earlier = Counts()
        self._now = Counts()

    @property
    def total(self) -> Counts:
        """The counts of all processes of the worker."""
        return self._earlier + self._now

    def take(self, report: Report) -> None:
        """Take in a report of the process that runs."""
        if self._first_given is None:
            self._first_given = report.num_given
        # A process that was killed has finished rows that it did not report.
        done_before = self._first_given - report.num_given
        num_missed = max(0, done_before - self._earlier.settled)
        self._earlier = replace(self._earlier, finished=self._earlier.finished + num_missed)
        self._now = report.counts

    def note_end(self) -> None:
        """Take notice that the process has ended; another one may be started."""
        kept = replace(
            self._now,
            num_in_flight=0,
            tokens_in_flight=0.0,
            seconds_left=None,
            seconds_in_flight=None,
        )
        self._earlier, self._now = self._earlier + kept, Counts()
