"""What Ctrl-C and SIGTERM do to a session."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import Any

from latentwire_batch.console import Console
from latentwire_batch.dispatch.dispatcher import Dispatcher


class Interrupts:
    """Ctrl-C and SIGTERM: the first lets rows in flight finish, the second ends the session.

    Before rows are in flight the first already ends it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._dispatcher: Dispatcher | None = None
        self._session: asyncio.Task[Any] | None = None
        self.count = 0

    def install(self) -> None:
        """Take over the signals for the running loop and the current task."""
        self._session = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread can; elsewhere the caller has its own way to stop.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self._receive)

    def drain_first(self, dispatcher: Dispatcher) -> None:
        """Let the next first signal stop this dispatcher instead of the session."""
        self._dispatcher = dispatcher

    def _receive(self) -> None:
        self.count += 1
        if self.count == 1 and self._dispatcher is not None:
            self._console.say("finishing the rows in flight; once more stops at once")
            self._dispatcher.stop()
        elif self._session is not None:
            self._session.cancel()
