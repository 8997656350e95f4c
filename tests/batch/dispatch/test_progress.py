from __future__ import annotations

import io

from latentwire_batch.console import Console
from latentwire_batch.dispatch.progress import ProgressReport


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_a_line_every_five_seconds_and_one_at_the_end() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with ProgressReport(Console(stream, "c"), total=12, settled=2, clock=clock) as progress:
        for _ in range(4):
            clock.now_s += 2.0
            progress.row_finished(30)
    assert stream.getvalue().splitlines() == [
        "c: 5/12 rows, 15.0 tokens/s, 0 failed, ETA 0:00:14",
        "c: 6/12 rows, 15.0 tokens/s, 0 failed",
    ]


def test_a_failed_row_is_named_at_once_without_its_text() -> None:
    stream = io.StringIO()
    with ProgressReport(Console(stream, "c"), total=1, settled=0, clock=FakeClock()) as progress:
        progress.row_failed(0, "prompt-too-long")
    assert stream.getvalue().splitlines() == [
        "c: row 0 failed: prompt-too-long",
        "c: 1/1 rows, 0 tokens/s, 1 failed",
    ]


def test_without_progress_only_the_last_line_is_left() -> None:
    stream, clock = io.StringIO(), FakeClock()
    console = Console(stream, "c", shows_progress=False)
    with ProgressReport(console, total=1, settled=0, clock=clock) as progress:
        clock.now_s += 3600.0
        progress.row_finished(1)
    assert stream.getvalue().splitlines() == ["c: 1/1 rows, 0.0 tokens/s, 0 failed"]


def test_an_interrupted_run_estimates_the_time_of_the_rows_in_flight_alone() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with ProgressReport(Console(stream, "c"), total=1000, settled=0, clock=clock) as progress:
        for index in range(3):
            progress.row_started(index)
        clock.now_s += 6.0
        progress.row_finished(30, 0)
        progress.row_started(3)
        assert progress.drain() == "3 rows, about 6 s"
        for index in (1, 2):
            clock.now_s += 6.0
            progress.row_finished(30, index)
    estimates = [line.split("ETA ")[1] for line in stream.getvalue().splitlines()[1:-1]]
    assert estimates == ["0:00:06", "0:00:06"]


def test_the_time_left_is_never_zero_while_a_row_is_in_flight() -> None:
    stream, clock = io.StringIO(), FakeClock()
    with ProgressReport(Console(stream, "c"), total=3, settled=0, clock=clock) as progress:
        for index in range(3):
            progress.row_started(index)
        clock.now_s += 6.0
        progress.row_finished(30, 0)
    assert stream.getvalue().splitlines()[0].endswith("2 in flight, ETA 0:00:01")
