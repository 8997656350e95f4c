"""A thread that appends items and runs calls in their order, with little work for the loop."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
# What is awaited, and the error to raise there.
_Ended = tuple[asyncio.Future[None], BaseException | None]

# The thread waits for each write, and then competes with the event loop: this costs more CPU time
# than to copy a megabyte. So items that follow one another within `_QUICK_S` share writes; each
# waits for others no longer than `_HOLD_S`.
_QUICK_S = 0.02
_HOLD_S = 0.001
_MAX_GROUP = 8


@dataclass(frozen=True, slots=True)
class _Job:
    call: Callable[[], None]
    ended: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Item(Generic[ItemT]):
    value: ItemT
    ended: asyncio.Future[None]


class Appender(Generic[ItemT]):
    """Appends items and runs calls, one after the other. Belongs to one event loop.

    `run_in_executor` costs a row as much as writing it. Here a row costs the event loop a part of
    an entry in a queue, and the ends of several are reported together.

    Args:
        append_all: appends items on the thread, all or none.
    """

    def __init__(self, append_all: Callable[[Sequence[ItemT]], None]) -> None:
        self._append_all = append_all
        self._loop = asyncio.get_running_loop()
        # Items that do not wait for the thread yet, but for others like them.
        self._held: list[_Item[ItemT]] = []
        self._last_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        # None ends the thread.
        self._waiting: SimpleQueue[_Job | list[_Item[ItemT]] | None] = SimpleQueue()
        self._ended: deque[_Ended] = deque()
        self._is_reporting = False
        self._is_closed = False
        # A process that ends early need not wait for it: a torn write shows in the log.
        self._thread = threading.Thread(target=self._run_waiting, name="append", daemon=True)
        self._thread.start()

    async def append(self, value: ItemT) -> None:
        """Append an item; raises what appending it raises. One that was cancelled may be."""
        self._check_open()
        item = _Item(value, self._loop.create_future())
        self._held.append(item)
        now_s = self._loop.time()
        is_quick, self._last_s = now_s - self._last_s < _QUICK_S, now_s
        if len(self._held) == _MAX_GROUP or not is_quick:
            self._hand_over()
        elif self._timer is None:
            self._timer = self._loop.call_later(_HOLD_S, self._hand_over)
        await item.ended

    async def run(self, call: Callable[[], None]) -> None:
        """Run a call on the thread; raises what it raises. A call that was cancelled may run."""
        self._check_open()
        self._hand_over()
        job = _Job(call, self._loop.create_future())
        self._waiting.put(job)
        await job.ended

    def close(self) -> None:
        """Wait for what the thread does now, and drop the rest."""
        self._is_closed = True
        self._stop_timer()
        self._waiting.put(None)
        self._thread.join()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the thread has ended")

    def _hand_over(self) -> None:
        self._stop_timer()
        if self._held:
            self._waiting.put(self._held)
            self._held = []

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run_waiting(self) -> None:
        while (job := self._waiting.get()) is not None and not self._is_closed:
            if not isinstance(job, _Job):
                self._append([item for item in job if not item.ended.cancelled()])
            elif not job.ended.cancelled():
                self._end([(job.ended, _error_of(job.call))])
            # While this waits for the next one, it must not keep memory that answers can use.
            del job

    def _append(self, items: list[_Item[ItemT]]) -> None:
        if not items:
            return
        error = _error_of(partial(self._append_all, [item.value for item in items]))
        if error is None or len(items) == 1:
            self._end([(item.ended, error) for item in items])
            return
        # One of them may be at fault, or the last ones have no room on the disk.
        for item in items:
            self._end([(item.ended, _error_of(partial(self._append_all, [item.value])))])

    def _end(self, ended: Sequence[_Ended]) -> None:
        self._ended.extend(ended)
        # In this order: a report that is due takes what was added before it begins.
        if not self._is_reporting:
            self._is_reporting = True
            self._loop.call_soon_threadsafe(self._report)

    def _report(self) -> None:
        self._is_reporting = False
        while self._ended:
            ended, error = self._ended.popleft()
            if ended.done():
                continue
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)


def _error_of(call: Callable[[], None]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None
