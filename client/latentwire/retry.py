"""Which calls are retried, for how long, and after which pause. Knows no client and no sleep.

Retrying is safe: `plan_latent` changes nothing in the service, so a call whose fate is unknown
(the connection broke after it was sent) may run twice and only costs work. A read timeout is not
retried, because the service is probably still busy with the first call, and a second one would
make an overload worse. 422, 500 and 504 would end the same way again.

Own code, because httpx itself retries nothing but failed connections, and one pure policy has to
serve both clients and the batch tool.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from latentwire.constants import (
    DEFAULT_MAX_RETRIES,
    INITIAL_RETRY_DELAY_S,
    MAX_RETRY_AFTER_S,
    MAX_RETRY_DELAY_S,
)
from latentwire.protocol import ErrorBody

RETRIED_STATUSES = frozenset({429, 503})
# RemoteProtocolError and ReadError also occur when the service closes an idle keep-alive connection
# at the moment the client reuses it.
RETRIED_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)
_DELAY_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
# Far above every cap; more doublings would overflow.
_MAX_DOUBLINGS = 30

Outcome = httpx.Response | httpx.RequestError
"""Result of one HTTP exchange: an answer of any status, or the error that prevented one."""


@dataclass(frozen=True, eq=False)
class RetryPolicy:
    """When one client retries.

    Attributes:
        max_retries: attempts allowed after the first one; None: `timeout_s` alone limits how often
            a busy service is retried, and a broken connection is retried `DEFAULT_MAX_RETRIES`
            times in a row.
        timeout_s: seconds from the beginning of a call after which it is not retried.
        rng: source of the jitter.
        clock: monotonic seconds.
    """

    max_retries: int | None
    timeout_s: float
    rng: random.Random
    clock: Callable[[], float]

    def begin(self) -> CallRetries:
        """Begin a call."""
        return CallRetries(self)


class CallRetries:
    """The retries of one call.

    Args:
        policy: of the client.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._begun_at = policy.clock()
        self._paused_s = 0.0
        self._num_failures = 0
        self._num_broken = 0

    def pause_s(self, outcome: Outcome, now_s: float) -> float | None:
        """Seconds to wait before the next attempt; None when the outcome is final.

        An attempt that would begin after the deadline is not waited for.

        Args:
            outcome: result of the latest attempt.
            now_s: current time, in seconds since the epoch.
        """
        if not self._may_retry(outcome):
            return None
        retry_after_s = retry_after_of(outcome, now_s)
        pause_s = retry_delay(self._num_failures, retry_after_s, self._policy.rng)
        # The pauses count by themselves, too: a caller's own `sleep` need not advance the clock.
        elapsed_s = max(self._policy.clock() - self._begun_at, self._paused_s)
        if elapsed_s + pause_s > self._policy.timeout_s:
            return None
        self._paused_s += pause_s
        self._num_failures += 1
        self._num_broken = 0 if is_busy(outcome) else self._num_broken + 1
        return pause_s

    def _may_retry(self, outcome: Outcome) -> bool:
        if self._policy.max_retries is not None:
            return should_retry(outcome, self._num_failures, self._policy.max_retries)
        return is_busy(outcome) or should_retry(outcome, self._num_broken, DEFAULT_MAX_RETRIES)


def should_retry(outcome: Outcome, attempt: int, max_retries: int) -> bool:
    """Whether a call is retried.

    Args:
        outcome: result of the attempt.
        attempt: 0 for the first attempt of a call.
        max_retries: attempts allowed after the first one.
    """
    if attempt >= max_retries:
        return False
    if isinstance(outcome, httpx.Response):
        return outcome.status_code in RETRIED_STATUSES
    return isinstance(outcome, RETRIED_ERRORS)


def is_busy(outcome: Outcome) -> bool:
    """Whether a service refused a request because it accepts none now.

    A request that the service had accepted, and whose engine failed, is not of this kind: perhaps
    the request itself ends engines, and many retries would end one after another.
    """
    if not isinstance(outcome, httpx.Response) or outcome.status_code not in RETRIED_STATUSES:
        return False
    try:
        return not ErrorBody.model_validate_json(outcome.content).engine_failed
    except ValidationError:
        # A gateway's page.
        return True


def retry_delay(attempt: int, retry_after_s: float | None, rng: random.Random) -> float:
    """Seconds to wait before the next attempt: exponential backoff with equal jitter.

    The pause is at least half the backoff and at least the service's `Retry-After` (up to
    `MAX_RETRY_AFTER_S`). The jitter is added on top of both, so that callers refused at the same
    moment do not return at the same moment.

    Args:
        attempt: 0 after the first attempt.
        retry_after_s: from the service's `Retry-After`; None when there was none.
        rng: source of the jitter.
    """
    num_doublings = min(attempt, _MAX_DOUBLINGS)
    backoff_s = min(math.ldexp(INITIAL_RETRY_DELAY_S, num_doublings), MAX_RETRY_DELAY_S)
    requested_s = min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
    return max(backoff_s / 2, requested_s) + rng.random() * backoff_s / 2


def parse_retry_after(value: str | None, now_s: float) -> float | None:
    """Read a `Retry-After` header.

    Args:
        value: seconds (fractions accepted) or an HTTP date; None when the header is absent.
        now_s: current time, in seconds since the epoch.

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
        # HTTP dates are in GMT; without a zone, Python would assume the local one.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def retry_after_of(outcome: Outcome, now_s: float) -> float | None:
    """Read the pause that an answer's `Retry-After` requests, in seconds; None without one.

    A date counts from the answer's own `Date`, so that the two machines' clocks need not agree;
    without a `Date`, it counts from `now_s` (seconds since the epoch).
    """
    if not isinstance(outcome, httpx.Response):
        return None
    sent_s = parse_http_date(outcome.headers.get("date", ""))
    return parse_retry_after(
        outcome.headers.get("retry-after"), now_s if sent_s is None else sent_s
    )
