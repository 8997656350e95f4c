"""The rows that run in a replica's engine, as the ledger knows them. Imports no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

# Takes rows that start and rows that have ended; whether the rows may start.
Note = Callable[[Sequence[int], Sequence[int]], Awaitable[bool]]


class RunningRows:
    """Tells the ledger which rows run: only they are suspected when the replica ends.

    Rows that start or end during a call share the next one. Belongs to one event loop.

    Args:
        note: tells the ledger.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._started: list[int] = []
        self._ended: list[int] = []
        self._told: asyncio.Future[bool] | None = None
        self._telling: asyncio.Task[None] | None = None

    async def start(self, indices: Sequence[int]) -> bool:
        """Return, once the ledger knows of rows, whether they may run.

        A row that ends the replica is found only if the ledger heard of it before it ran.
        """
        self._started += indices
        # Shielded, because other rows wait for it, too.
        return await asyncio.shield(self._tell())

    def end(self, indices: Sequence[int]) -> None:
        """Note that rows no longer run, though they are not durable yet."""
        self._ended += indices
        self._tell()

    def _tell(self) -> asyncio.Future[bool]:
        told = self._told
        if told is None:
            told = self._told = asyncio.get_running_loop().create_future()
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell_all())
        return told

    async def _tell_all(self) -> None:
        try:
            while (told := self._told) is not None:
                started, self._started = self._started, []
                ended, self._ended = self._ended, []
                self._told = None
                try:
                    may_start = await self._note(started, ended)
                except Exception as error:
                    told.set_exception(error)
                    # Nobody may wait for rows that have ended.
                    told.exception()
                else:
                    told.set_result(may_start)
        finally:
            self._telling = None
