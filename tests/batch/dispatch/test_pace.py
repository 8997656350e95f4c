from __future__ import annotations

import pytest

from latentwire_batch.dispatch.failure_report import FailureReport
from latentwire_batch.dispatch.pace import Pace


class FakeClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rows_in_flight_count_by_the_share_of_their_time() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    assert pace.seconds_left(8) is None
    for index in range(4):
        pace.start(index)
    assert pace.tokens_in_flight() == 0
    assert pace.seconds_left(8) is pace.seconds_in_flight() is None
    clock.now_s = 10.0
    pace.finish(0, tokens=100)
    pace.end(0)
    pace.start(4)
    # Three rows have taken as long as the mean row, and the fourth has just begun.
    assert pace.tokens_in_flight() == 300
    assert pace.seconds_left(7) == pytest.approx((7 - 3) * 10.0 / 4)
    assert pace.seconds_in_flight() == pytest.approx(10.0)
    clock.now_s = 15.0
    assert pace.tokens_in_flight() == 350
    assert pace.seconds_in_flight() == pytest.approx(5.0)


def test_rows_that_were_refused_give_no_estimate() -> None:
    pace = Pace(FakeClock())
    pace.start(0)
    pace.end(0)
    assert pace.num_in_flight == 0
    assert pace.seconds_left(8) is None


def test_equal_failures_are_counted_after_the_first_ones() -> None:
    lines: list[str] = []
    report = FailureReport(lines.append)
    for index in range(60):
        report.add(index, "prompt-too-long", f"the prompt has {index}\nand more " + "x" * 999)
    report.add(60, "internal", "error 12")
    report.close({"prompt-too-long": 60, "internal": 1})
    assert [line[:50] for line in lines] == [
        *(f"row {i} failed: prompt-too-long: the prompt has {i} and"[:50] for i in range(3)),
        "further rows that fail with prompt-too-long are only counted"[:50],
        "row 60 failed: internal: error 12",
        "60 rows failed with prompt-too-long",
    ]
    assert max(map(len, lines)) < 300
