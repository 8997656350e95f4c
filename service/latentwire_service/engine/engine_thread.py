"""The thread that owns the engine: submit and cancel from anywhere, drain, and failure.

Other threads only put commands into the inbox and read counters; what the loop works on is its own.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from latentwire_service.engine.engine import Engine, StepStats
from latentwire_service.engine.errors import EngineUnavailableError, QueueFullError
from latentwire_service.engine.request import Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is: requests in a slot, and those for which none is left."""

    num_running: int
    num_waiting: int


class EngineThread:
    """Runs `Engine.step` while there is work.

    Args:
        engine: owned by this thread from `start` on.
        max_slots: requests that the engine runs together.
        max_queue: requests that may wait for a slot.
        on_step: called on the engine's thread after each step.
        on_failure: called on the engine's thread once the engine is lost.
    """

    def __init__(
        self,
        engine: Engine,
        max_slots: int,
        max_queue: int,
        on_step: Callable[[StepStats], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._engine = engine
        self._max_slots = max_slots
        self._max_queue = max_queue
        self._on_step = on_step
        self._on_failure = on_failure
        self._condition = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._num_in_engine = 0
        self._is_stopping = False
        self._is_open = True
        # A daemon: a step that hangs in a driver must not keep a dying process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is."""
        with self._condition:
            num_unfinished = self._num_in_engine + len(self._inbox)
        num_running = min(num_unfinished, self._max_slots)
        return EngineLoad(num_running, num_unfinished - num_running)

    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queue a request; its future is resolved on the engine's thread.

        Raises:
            QueueFullError: as many requests wait as may.
            EngineUnavailableError: the engine is stopping or lost.
        """
        with self._condition:
            if not self._is_open:
                raise EngineUnavailableError("the engine takes no more requests")
            # What waits for the next step only will have its slot then, and is not in the queue.
            num_unfinished = self._num_in_engine + len(self._inbox)
            if num_unfinished >= self._max_slots + self._max_queue:
                raise QueueFullError(self._max_queue, retry_after_s=1.0)
            self._inbox.append(request)
            self._condition.notify()

    def cancel(self, request: Request) -> None:
        """Give a request up: its slot is free from the next step on."""
        with self._condition:
            self._cancelled.append(request)
            self._condition.notify()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Take no more requests, finish those taken, end the loop.

        Returns:
            whether the loop ended within the timeout (None: wait for it without limit).
        """
        with self._condition:
            self._is_open = False
            self._is_stopping = True
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._take_commands():
                stats = self._engine.step()
                if stats is not None:
                    self._on_step(stats)
        except Exception as error:
            # The boundary: whatever broke a step (out of memory, a lost device) has left the KV
            # cache in an unknown state, so every waiter is told and nothing is served any more.
            logger.exception("the engine failed")
            self._fail(error)

    def _take_commands(self) -> bool:
        """Hand queued commands to the engine, sleeping while there is no work; False at the end."""
        with self._condition:
            self._note_load()
            while not self._inbox and not self._cancelled and not self._has_work():
                if self._is_stopping:
                    return False
                self._condition.wait()
            while self._inbox:
                self._engine.add(self._inbox.popleft())
            while self._cancelled:
                self._engine.cancel(self._cancelled.popleft())
            self._note_load()
        return True

    def _has_work(self) -> bool:
        return self._engine.num_running + self._engine.num_waiting > 0

    def _note_load(self) -> None:
        self._num_in_engine = self._engine.num_running + self._engine.num_waiting

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self._is_open = False
            while self._inbox:
                self._engine.add(self._inbox.popleft())
        self._engine.fail_all(EngineUnavailableError("the engine failed"))
        with self._condition:
            self._note_load()
        self._on_failure(error)
