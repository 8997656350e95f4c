"""From the engine's thread to asyncio: the steps of one request. Neither side waits for the other.

The engine's thread appends a step and wakes the reader, unless a wake-up is already on its way. A
slow reader costs memory only for the steps of its own request, at most `max_new_tokens`; their rows
are views of rows that the request holds anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress

from latentwire_service.engine.backend import Completion, Step


class StepChannel:
    """The steps of one request. Made on the event loop that reads them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._steps: deque[Step] = deque()
        self._changed = asyncio.Event()
        self._is_wake_scheduled = False

    def put(self, step: Step) -> None:
        """Hand over a step. Called on the engine's thread; never blocks."""
        self._steps.append(step)
        self.wake()

    def wake(self) -> None:
        """Wake the reader. Called from any thread; never blocks."""
        # One wake-up delivers all steps that arrive before it runs. An extra wake-up finds none.
        if self._is_wake_scheduled:
            return
        self._is_wake_scheduled = True
        # A closed loop has no reader.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_wake)

    async def read(self, future: Future[Completion]) -> list[Step]:
        """Wait for steps and return those that came since the last call; none at the end.

        Args:
            future: the request's; resolving it must be followed by `wake`.
        """
        while True:
            # Read before the steps: once the future is done, all steps have been put.
            is_done = future.done()
            if self._steps or is_done:
                return [self._steps.popleft() for _ in range(len(self._steps))]
            await self._changed.wait()
            self._changed.clear()

    def _on_wake(self) -> None:
        # Cleared first: a step that is put from here on schedules another wake-up.
        self._is_wake_scheduled = False
        self._changed.set()
