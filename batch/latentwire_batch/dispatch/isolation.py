"""Finds the rows that end replicas. Pure.

When a replica ends, each row that it had is a suspect. Suspects are sent again after all other
rows, in groups that share a replica with no other row. A group that ends a replica is split, until
a row is alone. So a row is blamed only for what it does alone, and a row that ends every replica
costs a bounded number of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from latentwire_batch.dispatch.attempts import Attempt
from latentwire_batch.tasks.results import Suspicion

# Each split costs the start of a replica, and each group the time of its longest row. Quarters find
# one row among 64 with 3 splits and some 8 groups; halves need 6 splits; single rows, 64 groups.
_NUM_PARTS = 4
# Replicas end for many other reasons. A row is blamed only after so many ended with it, and so many
# of these while it was alone.
MAX_LOST = 3
MAX_LOST_ALONE = 2


class Isolation:
    """The suspects that wait to be sent."""

    def __init__(self) -> None:
        self._by_group_size: dict[int, deque[Attempt]] = {}

    def __len__(self) -> int:
        """Count the suspects."""
        return sum(map(len, self._by_group_size.values()))

    def add(self, attempt: Attempt) -> None:
        """Let a suspect wait. The one that is closest to a verdict is first."""
        suspicion = attempt.suspicion
        assert suspicion is not None
        suspects = self._by_group_size.setdefault(suspicion.group_size, deque())
        if suspicion.num_lost_alone:
            suspects.appendleft(attempt)
        else:
            suspects.append(attempt)

    @property
    def first(self) -> Attempt | None:
        """The first suspect of the next group."""
        return self._by_group_size[min(self._by_group_size)][0] if self._by_group_size else None

    def take_group(self, limit: int) -> Iterator[Attempt]:
        """Remove and yield the rows to send together, at least one.

        Args:
            limit: most rows that the replica may have.
        """
        group_size = min(self._by_group_size)
        suspects = self._by_group_size[group_size]
        for _ in range(min(len(suspects), group_size, max(1, limit))):
            yield suspects.popleft()
        if not suspects:
            del self._by_group_size[group_size]


def suspect(attempt: Attempt, num_together: int, is_lost: bool = True) -> Attempt:
    """Return an attempt that is sent with fewer rows than before.

    Args:
        attempt: that a replica had when it ended.
        num_together: rows that the replica had then.
        is_lost: False for a replica that refused the row and may have ended earlier.
    """
    return replace(attempt, suspicion=suspicion_after(attempt.suspicion, num_together, is_lost))


def suspicion_after(before: Suspicion | None, num_together: int, is_lost: bool = True) -> Suspicion:
    """Return what is suspected of a row that a replica had when it ended; see `suspect`.

    Args:
        before: None: nothing was suspected.
        num_together: rows that the replica had then.
        is_lost: False for a replica that refused the row and may have ended earlier.
    """
    before = before or Suspicion(num_together)
    is_alone = num_together == 1
    group_size = max(1, -(-min(num_together, before.group_size) // _NUM_PARTS))
    return Suspicion(
        group_size,
        before.num_lost + is_lost,
        before.num_lost_alone + (is_lost and is_alone),
    )


def is_guilty(suspicion: Suspicion) -> bool:
    """Whether another replica would end, too."""
    return suspicion.num_lost >= MAX_LOST and suspicion.num_lost_alone >= MAX_LOST_ALONE
