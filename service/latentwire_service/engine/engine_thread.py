"""The thread that owns the engine: submission, cancellation, drain and failure.

Other threads only put commands into the inbox and read counters; only this one touches the engine.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from latentwire_service.engine.admission import (
    Admission,
    Displace,
    QueueCounts,
    Refuse,
    RetrySpread,
    SlotTime,
    greediest_of,
)
from latentwire_service.engine.backend import (
    Completion,
    GenerationSpec,
    Occupancy,
    OnStep,
    StepStats,
)
from latentwire_service.engine.errors import (
    EngineError,
    EngineFailedError,
    EngineUnavailableError,
    QueueFullError,
)
from latentwire_service.engine.request import Request
from latentwire_service.engine.seams.stepped import SteppedEngine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SubmittedRequest:
    """A `GenerationHandle` of this thread."""

    _request: Request
    _thread: EngineThread

    @property
    def future(self) -> Future[Completion]:
        """Resolved on the engine's thread with the completion or with an `EngineError`."""
        return self._request.future

    def cancel(self) -> None:
        """Give the request up: its slot is free from the next step on."""
        self._thread.cancel(self._request)


class EngineThread:
    """Runs `SteppedEngine.step` while there is work.

    Args:
        engine: owned by this thread from `start` on.
        max_slots: requests that the engine runs together.
        max_queue: requests that may wait for a slot; see `Admission`.
        on_step: called on the engine's thread after each step.
        on_failure: called on the engine's thread once the engine is lost.
        on_start: called on the engine's thread before the first step.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        max_slots: int,
        max_queue: int,
        on_step: Callable[[StepStats], None],
        on_failure: Callable[[Exception], None],
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._max_slots = max_slots
        self._max_queue = max_queue
        self._admission = Admission(max_slots, max_queue)
        self._slot_time = SlotTime()
        self._retries = RetrySpread()
        self._on_step = on_step
        self._on_failure = on_failure
        self._on_start = on_start
        # Guards everything below.
        self._condition = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._num_in_engine = 0
        # Requests of `_num_in_engine` that the current step has finished.
        self._num_resolved = 0
        self._waiting: Counter[str] = Counter()
        self._abort_error: EngineError | None = None
        self._lost: Exception | None = None
        self._is_stopping = False
        self._is_open = True
        # Written by the thread alone: when its current step began; None while it waits for work.
        self._step_began_at: float | None = None
        # A daemon: a step that hangs in a driver must not keep a dying process alive.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    @property
    def occupancy(self) -> Occupancy:
        """How busy the engine is."""
        with self._condition:
            num_unfinished = self._counts().num_unfinished
        num_running = min(num_unfinished, self._max_slots)
        return Occupancy(num_running, num_unfinished - num_running)

    @property
    def step_age_s(self) -> float:
        """Seconds since the current step began; 0 while none runs."""
        began_at = self._step_began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def is_alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    def submit(self, spec: GenerationSpec, on_step: OnStep | None = None) -> SubmittedRequest:
        """Queue a request.

        Args:
            spec: the request.
            on_step: as `Backend.submit`.

        Raises:
            QueueFullError: the queue is full.
            EngineUnavailableError: the engine is stopping or lost.
        """
        with self._condition:
            if not self._is_open:
                raise EngineUnavailableError("the engine accepts no more requests")
            decision = self._admission.decide(spec.caller, self._counts())
            if isinstance(decision, Refuse):
                raise self._queue_full(spec.caller, decision.retry_after_s)
            if isinstance(decision, Displace):
                # Its request is dropped before the next step; see `_drop_displaced`.
                self._waiting[decision.caller] -= 1
            request = self._engine.new_request(spec, on_step)
            # Before any callback that delivers the answer: its receiver finds the place free.
            request.future.add_done_callback(self._note_resolved)
            self._waiting[spec.caller] += 1
            self._inbox.append(request)
            self._condition.notify()
        return SubmittedRequest(request, self)

    def cancel(self, request: Request) -> None:
        """Give a request up: its slot is free from the next step on."""
        with self._condition:
            self._cancelled.append(request)
            self._condition.notify()

    def abort(self, error: EngineError) -> None:
        """Refuse new requests and fail the accepted ones from the next step on."""
        with self._condition:
            self._is_open = False
            self._abort_error = error
            self._condition.notify()

    def lose(self, error: Exception) -> None:
        """Fail as if the next step raised: what computes the steps is gone."""
        with self._condition:
            self._lost = error
            self._condition.notify()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests, finish the accepted ones, end the loop.

        Returns:
            whether the loop ended within the timeout; None waits without limit.
        """
        with self._condition:
            self._is_open = False
            self._is_stopping = True
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            if self._on_start is not None:
                self._on_start()
            while self._take_commands():
                self._step_began_at = time.monotonic()
                stats = self._engine.step()
                self._step_began_at = None
                if stats is not None:
                    self._on_step(stats)
        except Exception as error:
            # The boundary: whatever broke a step (out of memory, a lost device) has left the KV
            # cache in an unknown state, so every request fails and no more are accepted.
            self._step_began_at = None
            logger.exception("the engine failed")
            self._fail(error)

    def _take_commands(self) -> bool:
        """Hand queued commands to the engine, sleeping while there is no work; False at the end."""
        with self._condition:
            self._note_engine()
            while not self._has_work:
                if self._is_stopping:
                    return False
                self._condition.wait()
            if self._lost is not None:
                raise self._lost
            while self._inbox:
                self._engine.add(self._inbox.popleft())
            while self._cancelled:
                self._engine.cancel(self._cancelled.popleft())
            if self._abort_error is not None:
                self._engine.fail_all(self._abort_error)
                self._abort_error = None
            self._note_engine()
            self._drop_displaced()
        return True

    @property
    def _has_work(self) -> bool:
        commands = self._inbox or self._cancelled or self._abort_error or self._lost
        return bool(commands or self._num_in_engine)

    def _drop_displaced(self) -> None:
        """Keep the queue to its limit.

        Only the number that is still due is dropped: a slot that has become free since makes room.
        """
        while self._admission.num_over(self._num_in_engine) > 0:
            caller = greediest_of(self._waiting)
            retry_after_s = self._admission.retry_after_s(self._counts())
            self._engine.displace(caller, self._queue_full(caller, retry_after_s))
            self._note_engine()

    def _queue_full(self, caller: str, estimate_s: float) -> QueueFullError:
        interval_s = self._slot_time.mean_s / self._max_slots
        delay_s = self._retries.delay_s(caller, estimate_s, interval_s, time.monotonic())
        return QueueFullError(self._max_queue, delay_s)

    def _note_resolved(self, future: Future[Completion]) -> None:
        self._slot_time.note(future)
        # A request whose future its owner has cancelled keeps its place until the engine drops it.
        if not future.cancelled():
            with self._condition:
                self._num_resolved += 1

    def _counts(self) -> QueueCounts:
        num_unfinished = self._num_in_engine - self._num_resolved + len(self._inbox)
        return QueueCounts(num_unfinished, self._waiting, self._slot_time.mean_s)

    def _note_engine(self) -> None:
        """Copy the engine's counts to where other threads may read them."""
        self._num_in_engine = self._engine.num_running + self._engine.num_waiting
        self._num_resolved = 0
        self._waiting = Counter(self._engine.num_waiting_by_caller)
        self._waiting.update(request.spec.caller for request in self._inbox)

    def _fail(self, error: Exception) -> None:
        with self._condition:
            self._is_open = False
            while self._inbox:
                self._engine.add(self._inbox.popleft())
        self._engine.fail_all(EngineFailedError("the engine failed"))
        with self._condition:
            self._note_engine()
        self._on_failure(error)
