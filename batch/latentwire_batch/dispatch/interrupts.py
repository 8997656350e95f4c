"""Ctrl-C and SIGTERM during a run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from latentwire.interrupts import sigterm_as_before
from latentwire_batch.console import Notify
from latentwire_batch.errors import RunInterrupted

ResultT = TypeVar("ResultT")


class Stoppable(Protocol):
    """Work that starts rows, until it is stopped."""

    def stop(self) -> None:
        """Start no more rows, and end when those in flight are stored."""
        ...


class Interrupts:
    """Signals of one session: the first lets in-flight rows finish, the second ends the session.

    While no rows are in flight, the first ends the session.

    Args:
        notify: receives the notice that the session is finishing.
        pass_on: called at each signal.

    Attributes:
        count: signals received.
    """

    def __init__(self, notify: Notify, pass_on: Callable[[], None] = lambda: None) -> None:
        self._notify = notify
        self._pass_on = pass_on
        self._dispatcher: Stoppable | None = None
        self._drain: Callable[[], str | None] = lambda: ""
        self._session: asyncio.Task[Any] | None = None
        self.count = 0

    def install(self) -> None:
        """Handle the signals for the running loop and the current task."""
        self._session = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread can; on other threads the caller has its own way to stop.
            with suppress(RuntimeError, ValueError):
                loop.add_signal_handler(number, self._receive)

    def drain_first(self, dispatcher: Stoppable, drain: Callable[[], str | None]) -> None:
        """Let the next first signal stop this dispatcher instead of the session.

        Args:
            dispatcher: finishes its rows in flight.
            drain: called when that signal arrives; describes the rows in flight. None: another
                process gives the notice.
        """
        self._dispatcher = dispatcher
        self._drain = drain

    def _receive(self) -> None:
        self.count += 1
        self._pass_on()
        if self.count == 1 and self._dispatcher is not None:
            rows = self._drain()
            if rows is not None:
                self._notify(f"finishing in-flight rows ({rows}); press Ctrl-C again to stop now")
            self._dispatcher.stop()
        elif self._session is not None:
            self._session.cancel()


def run_interruptible(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run `main` in an event loop of its own.

    Raises:
        RunInterrupted: when a signal ended it at once.
    """
    try:
        with sigterm_as_before():
            return asyncio.run(main)
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        raise RunInterrupted from error
