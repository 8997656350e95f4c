"""The rows that one replica has settled, in segments that are put into a store."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from latentwire_batch.errors import LocationError
from latentwire_batch.journal.record_log import Record
from latentwire_batch.journal.row_records import failed_record, finished_record, suspect_record
from latentwire_batch.journal.segments.patience import patiently
from latentwire_batch.journal.segments.segment import SegmentBuilder, segment_name
from latentwire_batch.locations import Folder
from latentwire_batch.locations.errors import output_error
from latentwire_batch.ray.ledger import Settled
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion

# A segment is closed when it has so many bytes, or when its first row has waited for so long.
SEGMENT_BYTES = 64 << 20
_MAX_AGE_S = 3.0
# They and the open one are in memory.
_PUTS_AT_A_TIME = 2


@dataclass
class _Segment:
    """Rows that become durable together.

    Attributes:
        done: ends when they are durable and announced.
        builder: holds their records.
        settled: the rows.
        is_due: whether it is to be closed, whatever its size.
        timer: makes it due at its age; holds it in memory until then.
    """

    done: asyncio.Future[None]
    builder: SegmentBuilder = field(default_factory=SegmentBuilder)
    settled: list[Settled] = field(default_factory=list)
    is_due: bool = False
    timer: asyncio.TimerHandle | None = None


class PartSegments:
    """Collects rows, and puts them into a folder in whole segments: a `Part`.

    A segment is closed at a size or an age, or as soon as the replica has nothing else to do.

    Args:
        folder: takes the segments.
        process: begins their names; no other process may have the same.
        announce: called with rows that are durable.
        is_idle: whether the replica could plan more rows than it has.
    """

    def __init__(
        self,
        folder: Folder,
        process: str,
        announce: Callable[[list[Settled]], Awaitable[None]],
        is_idle: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._process = process
        self._announce = announce
        self._is_idle = is_idle
        self._pool = ThreadPoolExecutor(_PUTS_AT_A_TIME, thread_name_prefix="put")
        self._open: _Segment | None = None
        self._num_segments = 0
        self._puts: set[asyncio.Task[None]] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._failure: Exception | None = None

    async def room(self) -> None:
        """Wait while a whole segment waits for those before it."""
        await self._has_room.wait()
        if self._failure is not None:
            raise self._failure

    async def finished(self, row: FinishedRow) -> None:
        """Return when the row is durable; raises StorageError or UsageError when it cannot be."""
        settled = Settled(row.row.index, row.completion_tokens)
        await self._durable(self._add(finished_record(row), settled))

    async def failed(self, row: FailedRow) -> None:
        """Return when the failure is durable; raises like `finished`."""
        settled = Settled(row.index, code=row.code, message=row.message)
        await self._durable(self._add(failed_record(row), settled))

    async def suspected(self, index: int, suspicion: Suspicion) -> None:
        """Return when the suspicion is durable; raises like `finished`."""
        segment = self._add(suspect_record(index, suspicion))
        segment.is_due = True
        await self._durable(segment)

    def close(self) -> None:
        """Drop what is not durable."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _is_full(self) -> bool:
        return self._open is not None and self._open.builder.num_bytes >= SEGMENT_BYTES

    def _add(self, record: Record, settled: Settled | None = None) -> _Segment:
        segment = self._open
        if segment is None:
            loop = asyncio.get_running_loop()
            segment = self._open = _Segment(loop.create_future())
            segment.timer = loop.call_later(_MAX_AGE_S, self._make_due, segment)
        segment.builder.add(record)
        self._update_room()
        if settled is not None:
            segment.settled.append(settled)
        return segment

    async def _durable(self, segment: _Segment) -> None:
        self._close_if_due()
        # Shielded, because the other rows of the segment wait for it, too.
        await asyncio.shield(segment.done)

    def _make_due(self, segment: _Segment) -> None:
        segment.is_due = True
        self._close_if_due()

    def _close_if_due(self) -> None:
        segment = self._open
        if segment is None or len(self._puts) >= _PUTS_AT_A_TIME:
            return
        # With one put at a time, a busy store makes larger segments and not more of them.
        is_waited_for = not self._puts and self._is_idle()
        if segment.is_due or self._is_full or is_waited_for:
            self._open = None
            if segment.timer is not None:
                segment.timer.cancel()
            put = asyncio.create_task(self._put(segment))
            self._puts.add(put)
            put.add_done_callback(self._put_ended)
            self._update_room()

    def _put_ended(self, put: asyncio.Task[None]) -> None:
        self._puts.discard(put)
        self._close_if_due()
        self._update_room()

    def _update_room(self) -> None:
        if self._is_full and self._failure is None:
            self._has_room.clear()
        else:
            self._has_room.set()

    async def _put(self, segment: _Segment) -> None:
        name = segment_name(self._process, self._num_segments)
        self._num_segments += 1
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, self._send, name, segment.builder)
            await self._announce(segment.settled)
        except Exception as error:
            # Every row of the segment raises it, and so do rows that wait for room.
            self._failure = error
            segment.done.set_exception(error)
        else:
            segment.done.set_result(None)

    def _send(self, name: str, builder: SegmentBuilder) -> None:
        data = builder.to_bytes()
        try:
            patiently(lambda: self._folder.write(name, data))
        except LocationError as error:
            what = f"{self._folder.shown} cannot be written to from {socket.gethostname()}"
            raise output_error(what, error) from error
