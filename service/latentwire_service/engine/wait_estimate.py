"""How long until a full queue has room, guessed from how long requests have held their slots."""

from __future__ import annotations

from concurrent.futures import Future

from latentwire_service.engine.backend import Completion

# Of the newest request in the mean: one odd request in ten should not decide.
_WEIGHT = 0.1
# Before any request has finished.
_FIRST_GUESS_S = 1.0


class WaitEstimate:
    """A moving mean of the seconds for which a request holds its slot.

    Args:
        max_slots: requests that run together.
    """

    def __init__(self, max_slots: int) -> None:
        self._max_slots = max_slots
        self._mean_s: float | None = None

    def note(self, future: Future[Completion]) -> None:
        """Take a request's future when it is resolved; those that failed tell nothing."""
        if future.cancelled() or future.exception() is not None:
            return
        completion = future.result()
        took_s = completion.prefill_s + completion.decode_s
        mean_s = took_s if self._mean_s is None else self._mean_s
        self._mean_s = mean_s + _WEIGHT * (took_s - mean_s)

    def seconds(self, num_waiting: int) -> float:
        """Return after how many seconds one request less is likely to wait than now do.

        A new request would wait for all of those to get a slot; but it only needs a place among
        them, for which a part of that time is enough. It is told half.
        """
        mean_s = _FIRST_GUESS_S if self._mean_s is None else self._mean_s
        return mean_s * (1 + num_waiting / self._max_slots) / 2
