"""When a call is sent again and how long to wait first. Pure: knows no client, clock or sleep.

What is sent again, and why that is safe: `plan_latent` changes nothing in the service, so a call
whose fate is unknown (the connection broke after it was sent) may run twice and costs only work.
It is not sent again after a read timeout: the service is likely still busy with the first one,
and a second would make an overload worse. 422, 500 and 504 would come out the same.
"""

from __future__ import annotations

import math
import random
import re
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from latentwire.constants import INITIAL_RETRY_DELAY_S, MAX_RETRY_AFTER_S, MAX_RETRY_DELAY_S

RETRIED_STATUSES = frozenset({429, 503})
# RemoteProtocolError and ReadError also come when the service closes an idle keep-alive connection
# in the moment the client takes it up again.
RETRIED_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)
_DELAY_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
# Far past every cap; doubling on would only overflow.
_MAX_DOUBLINGS = 30

Outcome = httpx.Response | httpx.RequestError
"""How one HTTP exchange ended: an answer of any status, or the error that left none."""


def should_retry(outcome: Outcome, attempt: int, max_retries: int) -> bool:
    """Tell whether a call is sent again.

    Args:
        outcome: how the exchange ended.
        attempt: 0 for the first exchange of a call.
        max_retries: exchanges allowed after the first one.
    """
    if attempt >= max_retries:
        return False
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRIED_STATUSES
    return isinstance(outcome, RETRIED_ERRORS)


def retry_delay(attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds to wait before the next exchange: exponential backoff with equal jitter.

    The wait is at least half the backoff and at least what the service asked for (up to
    `MAX_RETRY_AFTER_S`). The jitter is added on top of both, so that callers refused in the same
    moment do not return in the same moment.

    Args:
        attempt: 0 after the first exchange.
        retry_after_s: what the service asked for; None when it did not.
        rng: source of the jitter.
    """
    num_doublings = min(attempt, _MAX_DOUBLINGS)
    backoff_s = min(math.ldexp(INITIAL_RETRY_DELAY_S, num_doublings), MAX_RETRY_DELAY_S)
    asked_s = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
    return max(backoff_s / 2, asked_s) + rng.random() * backoff_s / 2


def parse_retry_after(value: str | None, now_s: float) -> float | None:
    """Read a `Retry-After` header.

    Args:
        value: seconds (fractions accepted) or an HTTP date; None when the header is absent.
        now_s: the present, in seconds since the epoch.

    Returns:
        Seconds to wait, 0 for a date in the past; None when absent or unreadable.
    """
    if value is None:
        return None
    text = value.strip()
    if _DELAY_SECONDS.fullmatch(text):
        delay_s = float(text)
        return delay_s if math.isfinite(delay_s) else None
    then_s = parse_http_date(text)
    return None if then_s is None else max(0.0, then_s - now_s)


def parse_http_date(text: str) -> float | None:
    """Read an HTTP date as seconds since the epoch; None when it is not one."""
    try:
        moment = parsedate_to_datetime(text)
        # HTTP dates are in GMT; without a zone the local one would be assumed.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def retry_after_of(outcome: Outcome, now_s: float) -> float | None:
    """Seconds that an answer asks to wait, from its `Retry-After`; None when it does not.

    A date is taken relative to the answer's own `Date`, so that the two machines' clocks need not
    agree; `now_s` (seconds since the epoch) stands in when there is none.
    """
    if not isinstance(outcome, httpx.Response):
        return None
    sent_s = parse_http_date(outcome.headers.get("date", ""))
    return parse_retry_after(
        outcome.headers.get("retry-after"), now_s if sent_s is None else sent_s
    )
