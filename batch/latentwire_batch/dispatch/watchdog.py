"""Work that ends early when a watch that runs alongside it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class Guard:
    """The watches of a session. A watch runs without end, and fails when the run cannot continue.

    Attributes:
        tasks: one per watch.
    """

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []

    def add(self, watch: Coroutine[Any, Any, None]) -> None:
        """Start a watch."""
        self.tasks.append(asyncio.create_task(watch))

    async def aclose(self) -> None:
        """Stop all watches."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def guarded(main: Awaitable[ResultT], guard: Guard, *others: asyncio.Task[None]) -> ResultT:
    """Await `main`, but cancel it and raise the error of a watch that fails first.

    Args:
        main: the work.
        guard: its watches.
        others: further tasks to treat like watches.
    """
    task = asyncio.ensure_future(main)
    watches = [*guard.tasks, *others]
    try:
        await asyncio.wait([task, *watches], return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            if watch.done():
                watch.result()
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
