"""A thread that runs calls in their order, with little work for the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], None]
    ended: asyncio.Future[None]


class Appender:
    """Runs calls one after the other. Belongs to one event loop.

    `run_in_executor` costs a row as much as writing it. Here a call costs the event loop one entry
    in a queue, and the ends of several calls are reported together.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # None ends the thread.
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[tuple[_Job, BaseException | None]] = deque()
        self._is_reporting = False
        self._is_closed = False
        # A process that ends early need not wait for it: a torn write shows in the log.
        self._thread = threading.Thread(target=self._run_waiting, name="append", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], None]) -> None:
        """Run a call on the thread; raises what it raises. A call that was cancelled may run."""
        if self._is_closed:
            raise RuntimeError("the thread has ended")
        job = _Job(call, self._loop.create_future())
        self._waiting.put(job)
        await job.ended

    def close(self) -> None:
        """Wait for the call that runs now, and drop the others."""
        self._is_closed = True
        self._waiting.put(None)
        self._thread.join()

    def _run_waiting(self) -> None:
        while (job := self._waiting.get()) is not None and not self._is_closed:
            if not job.ended.cancelled():
                self._run(job)
            # While this waits for the next one, it must not keep memory that answers can use.
            del job

    def _run(self, job: _Job) -> None:
        error: BaseException | None = None
        try:
            job.call()
        except BaseException as raised:
            error = raised
        self._ended.append((job, error))
        # In this order: a report that is due takes what was added before it begins.
        if not self._is_reporting:
            self._is_reporting = True
            self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        self._is_reporting = False
        while self._ended:
            job, error = self._ended.popleft()
            if job.ended.done():
                continue
            if error is None:
                job.ended.set_result(None)
            else:
                job.ended.set_exception(error)
