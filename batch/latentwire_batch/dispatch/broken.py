"""Rows whose connection broke, until it is known whether their replica ended.

A broken connection is the network's fault or the replica's end, and looks the same. The replica's
next answer tells: a process that was up before the row was sent did not end. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from latentwire_batch.dispatch.attempts import Attempt
from latentwire_batch.dispatch.verdicts import Failure
from latentwire_batch.replicas.replica import Replica

# A replica that stays away so long counts as ended, if another one can take the row.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class BrokenRow:
    """A row that waits for the judgement.

    Attributes:
        attempt: that failed.
        replica: that had the row.
        failure: of the attempt.
        num_together: rows that the replica had when the connection broke.
        sent_s: when the row was sent, `time.monotonic` seconds.
        broken_s: when the connection broke.
    """

    attempt: Attempt
    replica: Replica
    failure: Failure
    num_together: int
    sent_s: float
    broken_s: float

    def has_ended_replica(self) -> bool | None:
        """Whether the replica has ended; None while that is not known."""
        return self.replica.has_ended_since(self.sent_s, self.broken_s)


@dataclass(frozen=True)
class Judged:
    """A row of which it is known, or presumed, whether its replica ended.

    Attributes:
        broken: the row.
        is_end: whether the replica ended.
    """

    broken: BrokenRow
    is_end: bool


class BrokenRows:
    """The rows that wait.

    Args:
        has_other_up: whether a replica other than the given one is up.
        patience_s: longest wait while no replica is up, in seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self, has_other_up: Callable[[Replica], bool], patience_s: float, clock: Callable[[], float]
    ) -> None:
        self._has_other_up = has_other_up
        self._patience_s = min(patience_s, _PATIENCE_S)
        self._clock = clock
        self._rows: list[BrokenRow] = []

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows)

    def add(self, broken: BrokenRow) -> None:
        """Let a row wait."""
        self._rows.append(broken)

    def take_judged(self) -> list[Judged]:
        """Remove and return the rows that need not wait any longer."""
        judged, waiting = [], []
        for broken in self._rows:
            has_ended = broken.has_ended_replica()
            if has_ended is None and self._is_presumed(broken):
                has_ended = True
            if has_ended is None:
                waiting.append(broken)
            else:
                judged.append(Judged(broken, has_ended))
        self._rows = waiting
        return judged

    def take_unknown(self) -> list[BrokenRow]:
        """Remove all rows; return those whose replicas count as ended, unless they come back."""
        unknown = [row for row in self._rows if row.has_ended_replica() is not False]
        self._rows = []
        return unknown

    def due_moments_s(self) -> list[float]:
        """Return when rows need not wait any longer, seconds of the clock."""
        return [
            broken.broken_s + self._patience_s
            for broken in self._rows
            if self._has_other_up(broken.replica)
        ]

    def _is_presumed(self, broken: BrokenRow) -> bool:
        waited_s = self._clock() - broken.broken_s
        return waited_s >= self._patience_s and self._has_other_up(broken.replica)
