"""Work that ends early when something that is watched beside it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from latentwire_batch.replicas.local import LocalReplicas

ResultT = TypeVar("ResultT")


class Guard:
    """What is watched during a session: the tasks end only by an error.

    Args:
        watch: told by the caller; None for nothing.
        local: own replicas; None where there are none.
    """

    def __init__(
        self, watch: Callable[[], Coroutine[Any, Any, None]] | None, local: LocalReplicas | None
    ) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        if watch is not None:
            self.add(watch())
        if local is not None:
            self.add(local.watch())
        self._local = local

    def add(self, watch: Coroutine[Any, Any, None]) -> None:
        """Watch one thing more."""
        self.tasks.append(asyncio.create_task(watch))

    def note_ready(self) -> None:
        """Say that the replicas came up."""
        if self._local is not None:
            self._local.note_ready()

    async def aclose(self) -> None:
        """Stop watching."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def guarded(main: Awaitable[ResultT], guard: Guard, *others: asyncio.Task[None]) -> ResultT:
    """Run `main`, but end with the error of a task beside it if that fails first."""
    task = asyncio.ensure_future(main)
    beside = [*guard.tasks, *others]
    try:
        await asyncio.wait([task, *beside], return_when=asyncio.FIRST_COMPLETED)
        for other in beside:
            if other.done():
                other.result()
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
