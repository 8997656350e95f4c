"""Who has which row: the one place where replicas and the driver meet. Imports no Ray.

It runs as an actor next to the driver. Replicas come and go, and Ray sends a block again when a
replica has ended with it; the ledger says which of its rows are still to be done, and which of them
may have ended the replica. What is settled is durable in the logs before it is noted here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from latentwire_batch.dispatch.isolation import is_guilty, suspicion_after
from latentwire_batch.ray.feed import Feed
from latentwire_batch.tasks.results import Suspicion
from latentwire_batch.tasks.rows import Row

# A replica that ends takes its rows with it, whatever the reason: a node goes, someone kills the
# process. So rows run with others again after the first time.
_MAX_UNSUSPECTED = 1


@dataclass(frozen=True)
class Member:
    """One process of a replica.

    Attributes:
        actor: id of the actor, which stays when Ray restarts it.
        process: id of this process of it.
    """

    actor: str
    process: str


@dataclass(frozen=True)
class Settled:
    """A row that stands in a log.

    Attributes:
        index: of the row.
        completion_tokens: of its plan; 0 for a row that failed.
        code: of its failure; None: it is finished.
        message: of its failure.
    """

    index: int
    completion_tokens: int = 0
    code: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Begun:
    """What a replica has to do with the rows of a block.

    Attributes:
        together: rows to plan next to any others.
        apart: rows to plan with few others or alone, and what is suspected of them.
        guilty: rows that end replicas, which are recorded as failed.
    """

    together: tuple[int, ...] = ()
    apart: tuple[tuple[int, Suspicion], ...] = ()
    guilty: tuple[tuple[int, Suspicion], ...] = ()


RefusalKind = Literal["usage", "storage", "lost"]


@dataclass(frozen=True)
class Event:
    """Something that the driver has to know.

    Attributes:
        kind: starting, joined, left, refused, began or settled.
        member: whose event it is.
        info: of a replica that joined: what it serves.
        indices: rows that began to run, or that were not durable when their replica left.
        settled: rows.
        refusal: why the run cannot continue: which sort of error, and its text.
    """

    kind: Literal["starting", "joined", "left", "refused", "began", "settled"]
    member: Member
    info: Mapping[str, Any] = field(default_factory=dict)
    indices: Sequence[int] = ()
    settled: Sequence[Settled] = ()
    refusal: tuple[RefusalKind, str] = ("lost", "")


class Ledger:
    """The rows of one run. All methods run on one event loop."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._feed = Feed()
        self._pending: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._suspicions: dict[int, Suspicion] = {}
        self._rows_of: dict[Member, set[int]] = {}
        self._member_of: dict[int, Member] = {}
        self._running: set[int] = set()
        # They run, or ran to their end and are not durable yet.
        self._in_flight: set[int] = set()
        self._events: list[Event] = []
        self._is_stopping = False

    async def start(self, member: Member) -> None:
        """Note that a process begins to load the model. It replaces earlier ones of its actor."""
        for earlier in [each for each in self._rows_of if each.actor == member.actor]:
            self._lose(earlier)
        self._events.append(Event("starting", member))

    async def join(self, member: Member, info: Mapping[str, Any]) -> None:
        """Note that a replica has loaded the model; return when the driver lets rows in."""
        self._rows_of.setdefault(member, set())
        self._events.append(Event("joined", member, info=info))
        await self._is_open.wait()

    async def open(
        self, pending: npt.NDArray[np.bool_], suspicions: Mapping[int, Suspicion]
    ) -> None:
        """Let rows in.

        Args:
            pending: `[num_rows]`, True for rows that are still to be done.
            suspicions: of pending rows, from earlier runs.
        """
        # Ray hands out arrays that cannot be written to.
        self._pending = pending.copy()
        self._suspicions = dict(suspicions)
        self._is_open.set()

    async def stop(self) -> None:
        """Let no more rows in."""
        self._is_stopping = True
        await self._feed.close()

    async def refuse(self, member: Member, kind: RefusalKind, message: str) -> None:
        """Note why the run cannot continue."""
        self._events.append(Event("refused", member, refusal=(kind, message)))

    async def give(self, number: int, rows: Sequence[Row]) -> bool:
        """Take the rows of the next block; return, with room for another, whether it is wanted."""
        return await self._feed.give(number, rows)

    async def take(self, number: int) -> Sequence[Row]:
        """Return the rows of a block once they are read; none when it is done, or nothing runs."""
        return await self._feed.take(number)

    async def done(self, number: int) -> None:
        """Forget the rows of a block: all of them are settled."""
        self._feed.drop(number)

    async def begin(self, member: Member, indices: Sequence[int]) -> Begun:
        """Say which rows of a block are to be done, and how; they belong to the replica now."""
        if self._is_stopping:
            return Begun()
        wanted = [index for index in indices if self._pending[index]]
        for index in wanted:
            holder = self._member_of.get(index)
            if holder is not None and holder != member:
                # Ray sends a block again only when its replica has ended.
                self._lose(holder)
        self._rows_of.setdefault(member, set()).update(wanted)
        self._member_of |= dict.fromkeys(wanted, member)
        return self._sorted(wanted)

    async def note(self, member: Member, started: Sequence[int], ended: Sequence[int]) -> bool:
        """Note rows that run from now on, and rows that no longer run.

        Only rows that run are suspected when their replica ends.

        Returns:
            Whether the rows may start.
        """
        self._running.difference_update(self._own(member, ended))
        if self._is_stopping:
            return False
        own = self._own(member, started)
        if own:
            self._running.update(own)
            self._in_flight.update(own)
            self._events.append(Event("began", member, indices=own))
        return True

    async def settle(self, member: Member, settled: Sequence[Settled]) -> None:
        """Note rows that stand in the replica's log.

        A replica that Ray took for lost may settle a row that another one has settled already.
        """
        new = [row for row in settled if self._pending[row.index]]
        for row in new:
            self._running.discard(row.index)
            self._in_flight.discard(row.index)
            self._pending[row.index] = False
            self._suspicions.pop(row.index, None)
            holder = self._member_of.pop(row.index, None)
            if holder is not None:
                self._rows_of.get(holder, set()).discard(row.index)
        if new:
            self._events.append(Event("settled", member, settled=new))

    async def take_events(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events

    def _sorted(self, wanted: Sequence[int]) -> Begun:
        together, apart, guilty = [], [], []
        for index in wanted:
            suspicion = self._suspicions.get(index)
            if suspicion is None or suspicion.num_lost <= _MAX_UNSUSPECTED:
                together.append(index)
            elif is_guilty(suspicion):
                guilty.append((index, suspicion))
            else:
                apart.append((index, suspicion))
        return Begun(tuple(together), tuple(apart), tuple(guilty))

    def _lose(self, member: Member) -> None:
        """Suspect the rows that ran on a replica when it ended."""
        indices = sorted(self._rows_of.pop(member, set()))
        suspects = [index for index in indices if index in self._running]
        in_flight = [index for index in indices if index in self._in_flight]
        self._running.difference_update(indices)
        self._in_flight.difference_update(indices)
        for index in indices:
            self._member_of.pop(index, None)
        for index in suspects:
            before = self._suspicions.get(index)
            self._suspicions[index] = suspicion_after(before, len(suspects))
        self._events.append(Event("left", member, indices=in_flight))

    def _own(self, member: Member, indices: Sequence[int]) -> list[int]:
        """Return those of the rows that a replica has: after its end, others have them."""
        return [index for index in indices if self._member_of.get(index) == member]
