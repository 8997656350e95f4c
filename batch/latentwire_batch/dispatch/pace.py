"""How fast rows are done: durations, tokens and the time left, rows in flight included. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """The rows of one session.

    A row in flight counts in part: by the time that it has taken, as a share of the mean row.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s: dict[int, float] = {}
        self._num_finished = 0
        self._finished_s = 0.0
        self._longest_s = 0.0
        self._tokens = 0

    @property
    def num_in_flight(self) -> int:
        """Rows that were sent and are not done."""
        return len(self._started_s)

    def start(self, index: int) -> None:
        """Count a row as sent."""
        self._started_s[index] = self._clock()

    def finish(self, index: int, tokens: int) -> None:
        """Note the duration of a row that has its plan."""
        started_s = self._started_s.get(index)
        if started_s is None:
            return
        duration_s = self._clock() - started_s
        self._num_finished += 1
        self._finished_s += duration_s
        self._longest_s = max(self._longest_s, duration_s)
        self._tokens += tokens

    def end(self, index: int) -> None:
        """Count a row as no longer in flight, whatever became of it."""
        self._started_s.pop(index, None)

    def tokens_in_flight(self) -> float:
        """Estimate the tokens that rows in flight have so far."""
        if not self._num_finished:
            return 0.0
        return sum(self._shares()) * self._tokens / self._num_finished

    def seconds_left(self, num_unsettled: int) -> float | None:
        """Estimate the time until all rows are done; None before the first one is.

        Args:
            num_unsettled: rows that are not done, those in flight included.
        """
        if not self._num_finished or not self._started_s:
            return None
        num_rows = max(0.0, num_unsettled - sum(self._shares()))
        return num_rows * self._mean_s / self.num_in_flight

    def seconds_in_flight(self) -> float | None:
        """Estimate the time until the rows in flight are done; None before the first row is."""
        if not self._num_finished or not self._started_s:
            return None
        newest_s = self._clock() - max(self._started_s.values())
        return max(0.0, self._longest_s - newest_s)

    @property
    def _mean_s(self) -> float:
        return self._finished_s / self._num_finished

    def _shares(self) -> list[float]:
        now_s = self._clock()
        mean_s = self._mean_s or 1.0
        return [min(1.0, (now_s - started_s) / mean_s) for started_s in self._started_s.values()]
