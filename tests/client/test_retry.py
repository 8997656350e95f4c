from __future__ import annotations

import random
import time
from collections.abc import Iterable
from itertools import repeat

import httpx
import pytest

from latentwire.retry import (
    Outcome,
    RetryPolicy,
    parse_http_date,
    parse_retry_after,
    retry_after_of,
    retry_delay,
    should_retry,
)

# Wed, 21 Oct 2015 07:28:00 GMT
DATE_S = 1445412480.0


@pytest.mark.parametrize(
    ("outcome", "is_retried"),
    [
        (httpx.Response(200), False),
        (httpx.Response(401), False),
        (httpx.Response(413), False),
        (httpx.Response(422), False),
        (httpx.Response(429), True),
        (httpx.Response(500), False),
        (httpx.Response(502), False),
        (httpx.Response(503), True),
        (httpx.Response(504), False),
        (httpx.ConnectError(""), True),
        (httpx.ConnectTimeout(""), True),
        (httpx.ReadError(""), True),
        (httpx.WriteError(""), True),
        (httpx.RemoteProtocolError(""), True),
        (httpx.ReadTimeout(""), False),
        (httpx.WriteTimeout(""), False),
        (httpx.PoolTimeout(""), False),
        (httpx.LocalProtocolError(""), False),
        (httpx.DecodingError(""), False),
    ],
    ids=lambda value: getattr(value, "status_code", None) or type(value).__name__,
)
def test_only_transient_failures_are_retried(outcome: Outcome, is_retried: bool) -> None:
    assert should_retry(outcome, attempt=0, max_retries=1) is is_retried


@pytest.mark.parametrize(
    ("attempt", "max_retries", "is_retried"),
    [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)],
)
def test_retries_are_counted(attempt: int, max_retries: int, is_retried: bool) -> None:
    assert should_retry(httpx.Response(503), attempt, max_retries) is is_retried


class FixedRng(random.Random):
    """Always draws the same fraction."""

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self._fraction = fraction

    def random(self) -> float:
        return self._fraction


@pytest.mark.parametrize(
    ("attempt", "retry_after_s", "least_s", "most_s"),
    [
        (0, None, 0.25, 0.5),
        (1, None, 0.5, 1.0),
        (2, None, 1.0, 2.0),
        (4, None, 4.0, 8.0),
        (5, None, 4.0, 8.0),
        (10_000, None, 4.0, 8.0),
        (0, 0.0, 0.25, 0.5),
        (0, 0.1, 0.25, 0.5),
        (0, 3.0, 3.0, 3.25),
        (3, 3.0, 3.0, 5.0),
        (0, 60.0, 60.0, 60.25),
        (0, 3600.0, 60.0, 60.25),
    ],
)
def test_delay_lies_between_its_bounds(
    attempt: int, retry_after_s: float | None, least_s: float, most_s: float
) -> None:
    assert retry_delay(attempt, retry_after_s, FixedRng(0.0)) == least_s
    assert retry_delay(attempt, retry_after_s, FixedRng(1.0)) == most_s


def test_delays_repeat_with_the_rng_seed() -> None:
    def delays(seed: int) -> list[float]:
        rng = random.Random(seed)
        return [retry_delay(attempt, None, rng) for attempt in range(6)]

    assert delays(1) == delays(1)
    assert delays(1) != delays(2)


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        (None, None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-1", None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("1_0", None),
        ("٧", None),
        ("9" * 400, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 100.0),
        ("Wed, 21 Oct 2015 09:28:00 +0200", 100.0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 100.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 100.0),
        ("Wed, 21 Oct 2015 07:26:19 GMT", 0.0),
        ("Wed, 21 Oct 2015", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(value: str | None, delay_s: float | None) -> None:
    assert parse_retry_after(value, now_s=DATE_S - 100) == delay_s


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_http_date_is_read_in_gmt_in_every_local_zone(
    monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", "XXX-9")
    time.tzset()
    try:
        assert parse_http_date(f"Wed, 21 Oct 2015 07:28:00 {zone}") == DATE_S
    finally:
        monkeypatch.undo()
        time.tzset()


def test_date_is_taken_relative_to_the_answers_own_date() -> None:
    headers = {
        "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT",
        "Date": "Wed, 21 Oct 2015 07:27:55 GMT",
    }
    assert retry_after_of(httpx.Response(503, headers=headers), now_s=0.0) == 5.0


def test_date_is_taken_relative_to_now_without_one() -> None:
    headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert retry_after_of(httpx.Response(503, headers=headers), now_s=DATE_S - 9) == 9.0


def test_no_answer_means_no_retry_after() -> None:
    assert retry_after_of(httpx.ConnectError(""), now_s=0.0) is None


# --- the retries of one call


class Clock:
    """Advances when it is told to."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def problem(status: int, **members: object) -> httpx.Response:
    return httpx.Response(
        status, json={"title": "", "status": status, "code": "not-ready", "detail": ""} | members
    )


def pauses(
    outcomes: Iterable[Outcome],
    max_retries: int | None = None,
    timeout_s: float = 100.0,
    attempt_s: float = 0.0,
    is_clock_moving: bool = True,
) -> int:
    """Number of pauses of a call with these outcomes, each of which takes `attempt_s` seconds."""
    clock = Clock()
    call = RetryPolicy(max_retries, timeout_s, FixedRng(0.0), clock).begin()
    for count, outcome in enumerate(outcomes):
        clock.now_s += attempt_s
        pause_s = call.pause_s(outcome, now_s=0.0)
        if pause_s is None:
            return count
        clock.now_s += pause_s * is_clock_moving
    raise AssertionError("the call never ended")


BUSY = httpx.Response(429)
BROKEN = httpx.ConnectError("")
ENGINE_LOST = problem(503, engine_failed=True)


@pytest.mark.parametrize("busy", [BUSY, problem(503), httpx.Response(503, text="<html>")])
@pytest.mark.parametrize("is_clock_moving", [True, False])
def test_a_busy_service_is_retried_until_the_deadline(
    busy: httpx.Response, is_clock_moving: bool
) -> None:
    # Pauses of 0.25, 0.5, 1, 2 and then 4 seconds: 3.75 s, and 24 times 4 s.
    assert pauses(repeat(busy, 99), is_clock_moving=is_clock_moving) == 4 + 24


@pytest.mark.parametrize(
    ("timeout_s", "attempt_s", "num_pauses"),
    [(0.0, 0.0, 0), (0.2, 0.0, 0), (0.25, 0.0, 1), (10.0, 9.8, 0), (10.0, 4.0, 2), (1e9, 9e9, 0)],
)
def test_a_pause_beyond_the_deadline_is_not_waited_for(
    timeout_s: float, attempt_s: float, num_pauses: int
) -> None:
    assert pauses(repeat(BUSY, 9), timeout_s=timeout_s, attempt_s=attempt_s) == num_pauses


@pytest.mark.parametrize("failure", [BROKEN, ENGINE_LOST])
def test_what_may_end_a_service_is_retried_a_few_times(failure: Outcome) -> None:
    assert pauses(repeat(failure, 9)) == 4
    # An answer in between shows that the service is there.
    assert pauses([failure] * 4 + [BUSY] + [failure] * 9) == 9
    assert pauses(repeat(failure, 9), timeout_s=0.8) == 2


@pytest.mark.parametrize("failure", [BUSY, BROKEN, ENGINE_LOST])
@pytest.mark.parametrize("max_retries", [0, 1, 7])
def test_a_number_of_retries_limits_every_kind(failure: Outcome, max_retries: int) -> None:
    assert pauses(repeat(failure, 9), max_retries) == max_retries
    assert pauses([BUSY, failure] * 9, max_retries) == max_retries


@pytest.mark.parametrize("final", [httpx.Response(422), problem(500), httpx.ReadTimeout("")])
def test_a_final_outcome_is_final_before_the_deadline(final: Outcome) -> None:
    assert pauses([BUSY, final]) == 1
