"""The deadline of `wait_ready`. Pure except for its clock; knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable

from latentwire.constants import PROBE_TIMEOUT_S, READY_POLL_INTERVAL_S
from latentwire.errors import WaitTimeoutError


class ReadyWait:
    """One wait: bounds each probe and each pause by the deadline."""

    def __init__(self, timeout_s: float, clock: Callable[[], float]) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._deadline_s = clock() + timeout_s
        self._probe_timeout_s = min(timeout_s, PROBE_TIMEOUT_S)

    @property
    def probe_timeout_s(self) -> float:
        """Maximum seconds of the next probe; always above 0."""
        return self._probe_timeout_s

    def pause_s(self, reason: str) -> float:
        """Seconds to sleep before the next probe.

        Args:
            reason: why the service was not ready.

        Raises:
            WaitTimeoutError: when no time is left; its text states the reason.
        """
        remaining_s = self._deadline_s - self._clock()
        if remaining_s <= READY_POLL_INTERVAL_S:
            raise WaitTimeoutError(f"not ready within {self._timeout_s:g} s; last reason: {reason}")
        self._probe_timeout_s = min(remaining_s - READY_POLL_INTERVAL_S, PROBE_TIMEOUT_S)
        return READY_POLL_INTERVAL_S
