"""A thread that runs calls in their order, with little work for the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], None]
    ended: asyncio.Future[None]


class Appender:
    """Runs calls one after the other. Belongs to one event loop.

    `run_in_executor` costs a row as much as writing it. This takes all calls that wait at once, and
    so it reports their ends.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="append")
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._ended: deque[tuple[_Job, BaseException | None]] = deque()
        self._is_running = False
        self._is_reporting = False

    async def run(self, call: Callable[[], None]) -> None:
        """Run a call on the thread; raises what it raises. A call that was cancelled may run."""
        job = _Job(call, self._loop.create_future())
        with self._lock:
            self._waiting.append(job)
            is_running, self._is_running = self._is_running, True
        if not is_running:
            self._thread.submit(self._run_waiting)
        await job.ended

    def close(self) -> None:
        """Wait for the call that runs now, and drop the others."""
        with self._lock:
            self._waiting.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                job = self._waiting.popleft()
            if not job.ended.cancelled():
                self._run(job)

    def _run(self, job: _Job) -> None:
        error: BaseException | None = None
        try:
            job.call()
        except BaseException as raised:
            error = raised
        with self._lock:
            self._ended.append((job, error))
            is_reporting, self._is_reporting = self._is_reporting, True
        if not is_reporting:
            self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, deque()
            self._is_reporting = False
        for job, error in ended:
            if job.ended.done():
                continue
            if error is None:
                job.ended.set_result(None)
            else:
                job.ended.set_exception(error)
