"""Admission to the queue: pure decisions over counts, and the wait that a refusal announces.

The queue is bounded and fair. A request gets in while there is room. When the queue is full, a
caller with fewer waiting requests displaces the newest request of the caller with the most.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from latentwire_service.engine.backend import Completion

# Weight of the newest request in the mean: one odd request in ten should not decide.
_WEIGHT = 0.1
# Callers who never come again must not delay others without end.
_MAX_SPREAD_S = 60.0
# Used until a request has finished.
_FIRST_GUESS_S = 1.0


@dataclass(frozen=True, slots=True)
class Admit:
    """The request gets a place."""


@dataclass(frozen=True, slots=True)
class Displace:
    """The request gets the place of the newest waiting request of `caller`."""

    caller: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The queue is full; a place is likely to be free after `retry_after_s` seconds."""

    retry_after_s: float


Decision = Admit | Displace | Refuse


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """The state that a decision depends on.

    Attributes:
        num_unfinished: accepted requests, running and waiting. It still includes displaced requests
            that the engine has not dropped yet.
        waiting: number of requests without a slot for each caller that has any; displaced requests
            are not included.
        mean_slot_s: mean seconds for which a request holds its slot.
    """

    num_unfinished: int
    waiting: Mapping[str, int]
    mean_slot_s: float


class Admission:
    """Decides whether a request gets into the queue.

    Args:
        max_slots: requests that run together.
        max_queue: requests that may wait. A request that gets a slot in the next step does not
            count as waiting.
    """

    def __init__(self, max_slots: int, max_queue: int) -> None:
        self._max_slots = max_slots
        self._max_queue = max_queue

    def decide(self, caller: str, counts: QueueCounts) -> Decision:
        """Decide about one more request of a caller."""
        num_over = self.num_over(counts.num_unfinished + 1)
        if num_over <= 0:
            return Admit()
        # The engine drops displaced requests between steps. Until then they take memory, so their
        # number is bounded.
        if num_over <= self._max_slots and counts.waiting:
            greediest = greediest_of(counts.waiting)
            # After the exchange the caller has no more than the displaced one.
            if counts.waiting.get(caller, 0) + 1 < counts.waiting[greediest]:
                return Displace(greediest)
        return Refuse(self.retry_after_s(counts))

    def num_over(self, num_unfinished: int) -> int:
        """Return by how many the accepted requests exceed slots and queue; negative: room."""
        return num_unfinished - self._max_slots - self._max_queue

    def retry_after_s(self, counts: QueueCounts) -> float:
        """Estimate the seconds until a queue place frees up.

        A new request would wait until all waiting ones have had a slot. It only needs a place among
        them, so the estimate is half of that time.
        """
        num_waiting = max(counts.num_unfinished - self._max_slots, 0)
        return counts.mean_slot_s * (1 + num_waiting / self._max_slots) / 2


class RetrySpread:
    """Spreads the retries of refused requests over the time in which places free up.

    If all were given the same time, most of them would be refused again. Each caller has a row of
    times of its own, so that a caller who sends thousands delays only itself.
    """

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}

    def delay_s(self, caller: str, estimate_s: float, interval_s: float, now_s: float) -> float:
        """Return the seconds after which a refused request should come again.

        Args:
            caller: of the request.
            estimate_s: seconds until the first place frees up.
            interval_s: mean seconds between two places.
            now_s: a monotonic time.
        """
        earliest = now_s + estimate_s
        at = max(earliest, min(self._next_at.get(caller, 0.0), earliest + _MAX_SPREAD_S))
        self._next_at = {name: then for name, then in self._next_at.items() if then > now_s}
        self._next_at[caller] = at + interval_s
        return at - now_s


def greediest_of(waiting: Mapping[str, int]) -> str:
    """Return the caller with the most waiting requests, the first one of several.

    Raises:
        ValueError: no caller has any.
    """
    return max(waiting, key=lambda caller: waiting[caller])


class SlotTime:
    """A moving mean of the seconds for which a request holds its slot."""

    def __init__(self) -> None:
        self._mean_s: float | None = None

    @property
    def mean_s(self) -> float:
        """The mean; a guess until a request has finished."""
        return _FIRST_GUESS_S if self._mean_s is None else self._mean_s

    def note(self, future: Future[Completion]) -> None:
        """Learn from the resolved future of a request. Failed requests do not count."""
        if future.cancelled() or future.exception() is not None:
            return
        completion = future.result()
        slot_s = completion.prefill_s + completion.decode_s
        mean_s = slot_s if self._mean_s is None else self._mean_s
        self._mean_s = mean_s + _WEIGHT * (slot_s - mean_s)
