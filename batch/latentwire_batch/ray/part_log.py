"""The rows that one replica has settled, in a log of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ray.ledger import Settled
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion

# Tells the driver of rows that are durable.
Announce = Callable[[list[Settled]], Awaitable[None]]


@dataclass
class _Commit:
    """Rows that become durable together.

    Attributes:
        settled: the rows.
        done: ends when they are durable and announced.
    """

    done: asyncio.Future[None]
    settled: list[Settled] = field(default_factory=list)


class PartLog:
    """Appends rows, and announces them once they are durable: a `Part`.

    Rows that arrive while a sync runs share the next one, so that a slow disk makes larger groups
    and not a longer queue. Belongs to one event loop.

    Args:
        layout: of the output; its folder is shared with the driver.
        name: of the log; no other process may have the same.
        num_rows: rows of the input.
        announce: called with rows that are durable.
    """

    def __init__(self, layout: OutputLayout, name: str, num_rows: int, announce: Announce) -> None:
        self._store = RowStore(RecordLog(layout.part_log(name)), num_rows)
        self._announce = announce
        self._appender = ThreadPoolExecutor(1, thread_name_prefix="append")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._next: _Commit | None = None
        self._committing: asyncio.Task[None] | None = None

    async def room(self) -> None:
        """Return at once: what is appended is in no memory of this process."""

    async def finished(self, row: FinishedRow) -> None:
        """Return when the row is durable; raises StorageError when it cannot be."""
        await self._append(lambda: self._store.add_finished(row))
        await self._committed(Settled(row.row.index, row.completion_tokens))

    async def failed(self, row: FailedRow) -> None:
        """Return when the failure is durable; raises like `finished`."""
        await self._append(lambda: self._store.add_failed(row))
        await self._committed(Settled(row.index, code=row.code, message=row.message))

    async def suspected(self, index: int, suspicion: Suspicion) -> None:
        """Record what is suspected of a row; raises like `finished`."""
        await self._append(lambda: self._store.add_suspect(index, suspicion))

    def close(self) -> None:
        """Close the log, once nothing is written any more."""
        self._appender.shutdown()
        self._syncer.shutdown()
        self._store.close()

    async def _append(self, write: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._appender, write)

    async def _committed(self, settled: Settled) -> None:
        if self._next is None:
            self._next = _Commit(asyncio.get_running_loop().create_future())
        commit = self._next
        commit.settled.append(settled)
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        # Shielded, because the other rows of the commit wait for it, too.
        await asyncio.shield(commit.done)

    async def _commit_all(self) -> None:
        while (commit := self._next) is not None:
            self._next = None
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._syncer, self._store.sync)
                await self._announce(commit.settled)
            except Exception as error:
                # Every row of the commit raises it.
                commit.done.set_exception(error)
            else:
                commit.done.set_result(None)
        self._committing = None
