"""From the event loop to the store: appends and syncs on threads, and reports progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from latentwire_batch.dispatch.appender import Appender
from latentwire_batch.dispatch.store import Store
from latentwire_batch.tasks.results import FailedRow, FinishedRow, NotStorableError, Suspicion

RowT = TypeVar("RowT")
# Fills in a row's matrices, on a worker thread. Raises NotStorableError.
Prepare = Callable[[FinishedRow], FinishedRow]

# A power loss costs at most the rows of this time, and those in flight.
SYNC_INTERVAL_S = 1.0


class Progress(Protocol):
    """Counts settled rows."""

    def row_started(self, index: int) -> None:
        """Count a row as sent."""
        ...

    def row_ended(self, index: int) -> None:
        """Count a row as no longer in flight."""
        ...

    def row_finished(self, completion_tokens: int, index: int | None = None) -> None:
        """Count a finished row."""
        ...

    def row_failed(self, index: int, code: str, message: str = "") -> None:
        """Count and show a failed row."""
        ...


class RowSink:
    """Stores rows as they settle.

    A row is awaited until it is written, so that slow storage holds back the rows behind it. One
    thread appends, so records do not mix; another syncs, so that a slow disk does not stop the
    appending.

    Args:
        store: owned by the caller, which closes it after `aclose`.
        progress: counts every row.
        prepare: makes what is stored of a row; None: its latent is stored as it is.
    """

    def __init__(self, store: Store, progress: Progress, prepare: Prepare | None = None) -> None:
        self._store = store
        self._prepare = prepare
        self._progress = progress
        self._appender = Appender(store.add_all_finished)
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._is_synced = True
        self._counted_until_s = time.monotonic()

    def started(self, index: int) -> None:
        """Count a row as sent."""
        self._progress.row_started(index)

    def ended(self, index: int) -> None:
        """Count a row as no longer in flight."""
        self._progress.row_ended(index)

    async def finished(self, row: FinishedRow) -> None:
        """Store a row; raises StorageError when it cannot be written.

        A row that cannot be prepared fails; the others are stored.
        """
        if self._prepare is not None:
            try:
                row = await asyncio.to_thread(self._prepare, row)
            except NotStorableError as error:
                given = row.row
                await self.failed(FailedRow(given.index, given.task_id, error.code, str(error)))
                return
        await self._appender.append(row)
        self._is_synced = False
        self._progress.row_finished(row.completion_tokens, row.row.index)

    async def failed(self, row: FailedRow) -> None:
        """Store why a row failed; raises like `finished`."""
        await self._append(self._store.add_failed, row)
        self._progress.row_failed(row.index, row.code, row.message)

    async def suspected(self, index: int, suspicion: Suspicion | None) -> None:
        """Store what is suspected of a row; None: nothing any more; raises like `finished`."""
        await self._append(lambda row: self._store.add_suspect(row, suspicion), index)

    async def keep_synced(self) -> None:
        """Make rows durable soon after they are written, until cancelled.

        Raises:
            StorageError: when they cannot be made durable.
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
        """Wait for the write that runs now, and drop the others."""
        self._appender.close()
        self._syncer.shutdown(wait=True, cancel_futures=True)

    async def _append(self, add: Callable[[RowT], None], row: RowT) -> None:
        await self._appender.run(partial(add, row))
        self._is_synced = False

    async def _sync(self) -> None:
        now_s = time.monotonic()
        elapsed_s, self._counted_until_s = now_s - self._counted_until_s, now_s
        # Set before the sync, which may miss a row that is appended meanwhile.
        self._is_synced = True
        await self._appender.run(partial(self._store.add_elapsed, elapsed_s))
        await asyncio.get_running_loop().run_in_executor(self._syncer, self._store.sync)
