"""Rows whose connection broke, until it is known whether their replica ended.

A broken connection is the network's fault or the replica's end, and looks the same. The replica's
next answer tells: a process that was up before the row was sent did not end. If the run ends
first, the next one tells. Sends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from latentwire_batch.dispatch.attempts import Attempt
from latentwire_batch.dispatch.verdicts import Failure
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.tasks.results import Suspicion, UnconfirmedLoss

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

    def suspicion(self) -> Suspicion:
        """Return what is suspected of the row if the run ends before that is known."""
        sent_at_s = time.time() - (time.monotonic() - self.sent_s)
        loss = UnconfirmedLoss(self.num_together, sent_at_s, self.replica.key)
        return replace(self.attempt.suspicion or Suspicion(self.num_together), unconfirmed=loss)


def has_ended(loss: UnconfirmedLoss, replicas: Iterable[Replica]) -> bool | None:
    """Whether the replica that had a row when an earlier run ended has ended; None: not known.

    The replica at the same address tells. If none answers there, the others tell: when all of them
    started after the row was sent, one of them has replaced it. A replica that is older than the
    row may be the same process at another address.

    Args:
        loss: as the earlier run recorded it.
        replicas: of this run. The first process that answered at each address counts, because later
            ones replace replicas that ended during this run.
    """
    sent_s = time.monotonic() - (time.time() - loss.sent_at_s)
    are_younger = {
        replica.key: replica.first_started_s > sent_s
        for replica in replicas
        if replica.first_started_s is not None
    }
    if loss.replica in are_younger:
        return are_younger[loss.replica]
    return True if are_younger and all(are_younger.values()) else None


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
        """Remove all rows; return those whose replicas are not known to live."""
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
