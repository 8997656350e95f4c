"""Between the event loop and the store: appends and syncs on threads, and progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.tasks.results import FailedRow, FinishedRow

RowT = TypeVar("RowT")

# What a power loss may cost at most, beside the rows in flight.
SYNC_INTERVAL_S = 1.0


class Progress(Protocol):
    """Is told how the run goes on."""

    def row_finished(self, completion_tokens: int) -> None:
        """Count a finished row."""
        ...

    def row_failed(self, index: int, code: str) -> None:
        """Count and show a failed row."""
        ...


class RowSink:
    """Stores rows as they are done.

    A row is awaited until it is written, so that slow storage holds back the rows behind it. One
    thread appends, so records do not mix; another syncs, so that a slow disk does not stop the
    appending.

    Args:
        store: owned by the caller, who closes it after `aclose`.
        progress: is told about every row.
        clock: monotonic seconds.
    """

    def __init__(self, store: RowStore, progress: Progress, clock: Callable[[], float]) -> None:
        self._store = store
        self._progress = progress
        self._clock = clock
        self._appender = ThreadPoolExecutor(1, thread_name_prefix="append")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._is_synced = True
        self._counted_until_s = clock()

    async def finished(self, row: FinishedRow) -> None:
        """Store a row; raises StorageError when it cannot be written."""
        await self._append(self._store.add_finished, row)
        self._progress.row_finished(row.completion_tokens)

    async def failed(self, row: FailedRow) -> None:
        """Store that a row failed; raises like `finished`."""
        await self._append(self._store.add_failed, row)
        self._progress.row_failed(row.index, row.code)

    async def keep_synced(self) -> None:
        """Make rows durable soon after they are written, until cancelled.

        Raises:
            StorageError: when the disk does not take them.
        """
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            if not self._is_synced:
                await self._sync()

    async def aclose(self) -> None:
        """Make everything durable and wait for the threads."""
        try:
            await self._sync()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Wait for what is being written right now, and no more."""
        self._appender.shutdown(wait=True, cancel_futures=True)
        self._syncer.shutdown(wait=True, cancel_futures=True)

    async def _append(self, add: Callable[[RowT], None], row: RowT) -> None:
        await asyncio.get_running_loop().run_in_executor(self._appender, add, row)
        self._is_synced = False

    async def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = self._clock()
        elapsed_s, self._counted_until_s = now_s - self._counted_until_s, now_s
        # Set before: a row that is appended meanwhile may or may not be covered.
        self._is_synced = True
        await loop.run_in_executor(self._appender, self._store.add_elapsed, elapsed_s)
        await loop.run_in_executor(self._syncer, self._store.sync)
