"""When a replica's segments are closed, and what a store that is slow or fails does to rows."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire_batch.errors import BatchError, LocationError, StorageError, UsageError
from latentwire_batch.journal.segments import patience
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.locations import Folder
from latentwire_batch.ray import part_segments
from latentwire_batch.ray.ledger import Settled
from latentwire_batch.ray.part_segments import PartSegments
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion
from latentwire_batch.tasks.rows import Row

ROW_BYTES = 4000


def finished(index: int) -> FinishedRow:
    latent = np.full((ROW_BYTES // 4, 1), index, dtype=np.float32)
    return FinishedRow(Row(index, f"t{index}", "task"), "plan", latent, 1, 1000, "stop", (), 1)


@dataclass
class Site:
    """A store that may be slow or fail, and what a part tells its ledger.

    Attributes:
        is_open: whether the store takes files now.
        errors: raised by the next writes.
        writes: times a file was sent.
        is_idle: what the replica says.
        settled: rows that were announced.
        lock: held while a file is placed or the folder is listed.
    """

    folder: Folder
    is_open: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)
    writes: int = 0
    is_idle: bool = False
    settled: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, use: Callable[[PartSegments], Coroutine[Any, Any, None]]) -> None:
        async def announce(rows: list[Settled]) -> None:
            self.settled += [row.index for row in rows]
            # A row is announced only when another machine would find it.
            assert await asyncio.to_thread(self.stored) >= set(self.settled)

        async def within() -> None:
            part = PartSegments(self.folder, "me", announce, lambda: self.is_idle)
            try:
                await use(part)
            finally:
                self.is_open.set()
                part.close()

        asyncio.run(within())

    def stored(self) -> set[int]:
        with self.lock:
            return {ref.row for ref in Segments(self.folder).open().recover()}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(Folder(str(tmp_path / "store")))
    site.is_open.set()
    real = Folder.write

    def write(self: Folder, name: str, data: bytes) -> None:
        site.writes += 1
        site.is_open.wait(60)
        if site.errors:
            raise site.errors.pop(0)
        # A list of a local folder must not meet a file that is being renamed.
        with site.lock:
            real(self, name, data)

    monkeypatch.setattr(Folder, "write", write)
    monkeypatch.setattr(patience, "retry_delay", lambda *_: 0.0)
    # Nothing is closed for its age, unless a test says so.
    monkeypatch.setattr(part_segments, "_MAX_AGE_S", 3600.0)
    return site


async def turns() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def started(*work: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(each) for each in work]
    await turns()
    return tasks


def test_rows_wait_for_others_while_the_replica_is_busy(site: Site) -> None:
    async def use(part: PartSegments) -> None:
        waiting = await started(*(part.finished(finished(index)) for index in range(4)))
        assert site.settled == []
        site.is_idle = True
        await part.failed(FailedRow(4, "t4", "code", "why"))
        await asyncio.gather(*waiting)

    site.run(use)
    assert site.writes == 1
    assert site.settled == [0, 1, 2, 3, 4]


def test_rows_that_are_durable_leave_the_memory(site: Site) -> None:
    site.is_idle = True

    async def use(part: PartSegments) -> None:
        row = finished(1)
        is_gone = threading.Event()
        latent = weakref.ref(row.hidden_state, lambda _: is_gone.set())
        await part.finished(row)
        del row
        # The thread that has sent the row may hold it for a moment after it has said so.
        await asyncio.to_thread(is_gone.wait, 60)
        assert latent() is None

    site.run(use)


def test_an_old_row_and_a_suspicion_do_not_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(part: PartSegments) -> None:
        await part.suspected(2, Suspicion(1, 1, 1))
        assert await asyncio.to_thread(site.stored) == {2}
        monkeypatch.setattr(part_segments, "_MAX_AGE_S", 0.01)
        await part.finished(finished(1))

    site.run(use)
    assert site.settled == [1]


def test_a_slow_store_holds_rows_back_and_bounds_memory(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_segments, "SEGMENT_BYTES", 2 * ROW_BYTES)
    site.is_open.clear()

    async def use(part: PartSegments) -> None:
        waiting = await started(*(part.finished(finished(index)) for index in range(5)))
        # Two segments are sent, and half of another is open.
        (room,) = await started(part.room())
        assert room.done()
        waiting += await started(part.finished(finished(5)))
        (room,) = await started(part.room())
        assert not room.done()
        site.is_open.set()
        await asyncio.gather(*waiting, room)

    site.run(use)
    assert sorted(site.settled) == list(range(6))
    assert site.writes == 3


@pytest.mark.parametrize(
    ("errors", "kind", "reason"),
    [
        ([LocationError("access is denied", is_users=True)], UsageError, "access is denied"),
        ([LocationError("slow down")] * 100, StorageError, "slow down"),
    ],
)
def test_a_store_that_refuses_ends_the_run_and_is_named(
    site: Site, errors: list[Exception], kind: type[BatchError], reason: str
) -> None:
    site.errors += errors
    site.is_idle = True

    async def use(part: PartSegments) -> None:
        with pytest.raises(
            kind, match=f"^--output-dir: .*store cannot be written to from .*: {reason}$"
        ):
            await part.finished(finished(1))
        with pytest.raises(kind):
            await part.room()

    site.run(use)
    assert site.settled == []


def test_a_store_that_fails_for_a_moment_costs_nothing(site: Site) -> None:
    site.errors += [LocationError("the store cannot be reached")] * 3
    site.is_idle = True
    site.run(lambda part: part.finished(finished(1)))
    assert site.settled == [1]
