"""What a worker reports to the first process, and how the first process adds it up."""

from __future__ import annotations

import io
from collections import Counter

from latentwire_batch.console import Console
from latentwire_batch.dispatch.progress import ProgressReport, RowFailure
from latentwire_batch.dispatch.tally import Counts
from latentwire_batch.workers.reports import Report, ReportingProgress, WorkerCounts


class FakeClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reports_of(stream: io.StringIO) -> list[Report]:
    reports = [Report.from_line(line) for line in stream.getvalue().splitlines()]
    return [report for report in reports if report is not None]


def test_a_worker_reports_counts_and_the_first_failures_of_each_kind() -> None:
    stream, clock = io.StringIO(), FakeClock()
    stream.write("a library's line\n[1]\n{}\n")
    with ReportingProgress(stream, 20, clock) as progress:
        for index in range(4):
            progress.row_started(index)
        clock.now_s = 2.0
        progress.row_finished(30, 0)
        for index in range(10, 15):
            progress.row_failed(index, "timeout", "late")
    first, last = reports_of(stream)
    assert first == Report(20, Counts(), [])
    shown = [RowFailure(index, "timeout", "late") for index in (10, 11, 12)]
    counts = Counts(1, 5, 30, 3, 90.0, (14 - 3) * 2.0 / 3, 0.0, Counter(timeout=5))
    assert last == Report(20, counts, shown)


def test_a_worker_that_is_started_again_counts_each_row_once() -> None:
    worker = WorkerCounts()
    worker.take(Report(20, Counts()))
    worker.take(Report(20, Counts(finished=6, failed=1, tokens=60, num_in_flight=2)))
    worker.note_end()
    assert worker.total == Counts(finished=6, failed=1, tokens=60)
    # Killed before it could report two more rows.
    for _ in range(2):
        worker.take(Report(11, Counts(finished=1, tokens=10, num_in_flight=2)))
    assert worker.total == Counts(finished=9, failed=1, tokens=70, num_in_flight=2)


class FakeOthers:
    now = Counts(8, 1, 900, 2, 100.0, 40.0, 9.0, Counter(timeout=1))
    failures: tuple[RowFailure, ...] = (RowFailure(7, "timeout", ""),)

    def counts(self) -> Counts:
        return self.now

    def take_failures(self) -> tuple[RowFailure, ...]:
        taken, self.failures = self.failures, ()
        return taken


def test_one_display_shows_the_sums_and_the_time_of_the_slowest() -> None:
    stream, clock = io.StringIO(), FakeClock()
    console = Console(stream, "c")
    with ProgressReport(console, 32, 2, clock, FakeOthers(), num_unsettled=10) as progress:
        for index in range(3):
            progress.row_started(index)
        clock.now_s = 10.0
        progress.row_finished(100, 0)
        assert progress.drain() == "4 rows, about 9 s"
        progress.row_failed(1, "timeout")
        progress.row_ended(1)
        progress.row_ended(2)
    assert stream.getvalue().splitlines() == [
        "c: row 7 failed: timeout",
        # 2 before, 1 of this process and 9 of the others; tokens in flight are of all.
        "c: 12/32 rows, 130.0 tokens/s, 1 failed, 4 in flight, ETA 0:00:40",
        "c: row 1 failed: timeout",
        "c: 13/32 rows, 110.0 tokens/s, 2 failed, 2 in flight",
    ]


def test_a_notice_that_several_processes_give_is_shown_once() -> None:
    stream = io.StringIO()
    console = Console(stream, "c")
    for tell in (console.relay, console.relay, console.say, console.say):
        tell("replica 0 does not answer")
    console.say("again")
    console.say("again")
    console.relay("again")
    assert stream.getvalue().splitlines() == [
        "c: replica 0 does not answer",
        "c: again",
        "c: again",
    ]
