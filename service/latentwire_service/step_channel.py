"""From the engine's thread to asyncio: the steps of one request, without either waiting.

The engine's thread only appends and, unless the bell is already ringing, rings. A reader that is
slow costs memory for the steps of its own request, which end at its `max_new_tokens`; their rows
are views of what the request holds anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress

from latentwire_service.engine.request import Completion, Step


class StepChannel:
    """The steps of one request. Made on the event loop that reads them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._steps: deque[Step] = deque()
        self._changed = asyncio.Event()
        self._is_ringing = False

    def put(self, step: Step) -> None:
        """Hand over a step. Called on the engine's thread; never blocks."""
        self._steps.append(step)
        self.ring()

    def ring(self) -> None:
        """Wake the reader. From any thread; never blocks."""
        # One bell for all steps that come before it is heard. A bell too many does no harm.
        if self._is_ringing:
            return
        self._is_ringing = True
        # A loop that is closed has no reader.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    async def read(self, future: Future[Completion]) -> list[Step]:
        """Return the steps that came since the last call, waiting for one; none at the end.

        Args:
            future: of the request; whoever resolves it rings.
        """
        while True:
            # Looked at before the steps are: those of a request that is done are all there.
            is_done = future.done()
            if self._steps or is_done:
                return [self._steps.popleft() for _ in range(len(self._steps))]
            await self._changed.wait()
            self._changed.clear()

    def _wake(self) -> None:
        # In this order: a step that is put from here on rings again.
        self._is_ringing = False
        self._changed.set()
