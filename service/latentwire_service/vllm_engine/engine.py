"""Requests over vLLM: who waits, who runs, and which token belongs to which hidden row.

It has the methods that `EngineThread` needs of an engine. vLLM batches and samples; this module
keeps the turns of callers, the text, the rows, and the end of each request. No vLLM is imported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latentwire_service.engine.backend import GenerationSpec, OnStep, StepStats
from latentwire_service.engine.detokenizer import Tokenizer, special_tokens
from latentwire_service.engine.errors import (
    DetokenizationError,
    EngineError,
    EngineFailedError,
    LatentInvalidError,
    RequestCancelledError,
)
from latentwire_service.engine.request import Request, RequestStatus
from latentwire_service.engine.waiting_queue import WaitingQueue
from latentwire_service.vllm_engine.events import Event, NewTokens, RequestFailed
from latentwire_service.vllm_engine.row_wire import RowBatch

# New requests and cancellations are noticed this often while vLLM reports nothing.
_POLL_S = 0.02
# After the last token. Rows and tokens come by different ways, which differ by milliseconds.
_ROW_PATIENCE_S = 30.0

Row = npt.NDArray[np.float32]


class Core(Protocol):
    """What this module needs of `VllmCore`."""

    def submit(
        self, request: int, prompt: Sequence[int], params: Mapping[str, Any], max_rows: int
    ) -> None:
        """Hand a request over."""
        ...

    def abort(self, request: int) -> None:
        """Give a request up."""
        ...

    def events(self, timeout_s: float) -> list[Event]:
        """Wait for something to happen, and return it."""
        ...


@dataclass(eq=False)
class _Running:
    """A request in vLLM: tokens and rows arrive apart, each in its order.

    Attributes:
        number: its name towards vLLM.
        request: what its caller waits for.
        token_ids: arrived, and not delivered.
        rows: arrived, and not delivered.
        num_rows: rows that arrived.
        ended_by: vLLM's own reason; None before its last token.
        fault: fails the request, after the steps before it are delivered.
    """

    number: int
    request: Request
    token_ids: deque[int] = field(default_factory=deque)
    rows: deque[Row] = field(default_factory=deque)
    num_rows: int = 0
    ended_by: str | None = None
    fault: EngineError | None = None

    @property
    def has_step(self) -> bool:
        """Whether the next token is here, and its row where one is kept."""
        return bool(self.token_ids) and (self.request.rows.is_full or bool(self.rows))


@dataclass(slots=True)
class _Tally:
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)


class VllmEngine:
    """Owned by one thread; other threads may call `new_request` and `stall_s` only.

    Args:
        core: runs the requests.
        params_of: vLLM's sampling parameters of a request.
        tokenizer: turns tokens into text.
        eos_token_ids: tokens that end generation.
        hidden_size: width of a row.
        max_slots: requests that run together.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        core: Core,
        params_of: Callable[[GenerationSpec], Mapping[str, Any]],
        tokenizer: Tokenizer,
        eos_token_ids: frozenset[int],
        hidden_size: int,
        max_slots: int,
        clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._params_of = params_of
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._eos_token_ids = eos_token_ids
        self._hidden_size = hidden_size
        self._max_slots = max_slots
        self._clock = clock
        self._waiting = WaitingQueue()
        self._running: dict[int, _Running] = {}
        self._num_started = 0
        self._progress_at = clock()

    @property
    def num_waiting(self) -> int:
        """Requests that vLLM does not have yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that vLLM has."""
        return len(self._running)

    @property
    def num_waiting_by_caller(self) -> Mapping[str, int]:
        """Waiting requests of each caller that has any."""
        return self._waiting.counts

    @property
    def stall_s(self) -> float:
        """Seconds since vLLM last reported something, while requests run; else 0."""
        return self._clock() - self._progress_at if self._running else 0.0

    def new_request(self, spec: GenerationSpec, on_step: OnStep | None = None) -> Request:
        """Make a request, submitted now; nothing runs before it is passed to `add`."""
        return Request(
            spec, self._hidden_size, self._tokenizer, on_step, self._clock(), self._special
        )

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def displace(self, caller: str, error: EngineError) -> None:
        """Fail the newest waiting request of a caller that has one."""
        self._fail(self._waiting.newest_of(caller), error)

    def cancel(self, request: Request) -> None:
        """Drop a request. A finished one stays as it is."""
        if not request.is_finished:
            self._fail(request, RequestCancelledError("the request was cancelled"))

    def fail_all(self, error: EngineError) -> None:
        """Fail every request, running and waiting."""
        for request in [*(each.request for each in self._running.values()), *self._waiting]:
            self._fail(request, error)

    def step(self) -> StepStats | None:
        """Start what may run, and deliver what vLLM has made; None when that is nothing."""
        self._start_waiting()
        events = self._core.events(_POLL_S)
        if not events:
            if self.stall_s > _ROW_PATIENCE_S:
                self._give_up_ended()
            return None
        self._progress_at = self._clock()
        tally = _Tally()
        for number in self._read(events):
            self._deliver(self._running[number], tally)
        return StepStats(
            num_prompt_tokens=tally.num_prompt_tokens,
            num_new_tokens=tally.num_new_tokens,
            first_token_s=tally.first_token_s,
        )

    def _start_waiting(self) -> None:
        while self._waiting and len(self._running) < self._max_slots:
            request = self._waiting.popleft()
            number = self._num_started
            self._num_started += 1
            if not self._running:
                self._progress_at = self._clock()
            self._running[number] = _Running(number, request)
            request.admit(number, self._clock())
            spec = request.spec
            params = self._params_of(spec)
            self._core.submit(number, spec.prompt.token_ids, params, spec.max_rows)

    def _give_up_ended(self) -> None:
        """Fail requests that vLLM has ended, and whose rows do not come."""
        for running in [each for each in self._running.values() if each.ended_by is not None]:
            num_tokens = len(running.request.token_ids) + len(running.token_ids)
            message = f"vLLM sent {running.num_rows} hidden rows of {num_tokens}"
            self._fail(running.request, LatentInvalidError(message))

    def _read(self, events: Iterable[Event]) -> list[int]:
        """Store what events hold; return the requests that something arrived for."""
        changed: dict[int, None] = {}
        for event in events:
            if isinstance(event, RowBatch):
                for number in self._read_rows(event):
                    changed[number] = None
            elif isinstance(event, NewTokens) and event.request in self._running:
                running = self._running[event.request]
                running.token_ids.extend(event.token_ids)
                running.ended_by = event.ended_by
                changed[event.request] = None
            elif isinstance(event, RequestFailed) and event.request in self._running:
                running = self._running[event.request]
                running.fault = EngineFailedError(f"vLLM failed on the request: {event.reason}")
                running.ended_by = "failed"
                changed[event.request] = None
        return [number for number in changed if number in self._running]

    def _read_rows(self, batch: RowBatch) -> Iterable[int]:
        is_finite = [bool(np.isfinite(row).all()) for row in batch.rows]
        for position, (number, index) in enumerate(zip(batch.requests, batch.indices, strict=True)):
            running = self._running.get(number)
            # Cancelled, or ended by a stop string before vLLM knew.
            if running is None or running.fault is not None:
                continue
            if index != running.num_rows:
                message = f"row {index} came from vLLM in place of row {running.num_rows}"
                running.fault = LatentInvalidError(message)
            elif batch.rows.shape[1] != self._hidden_size:
                running.fault = LatentInvalidError(f"a hidden row is not {self._hidden_size} wide")
            elif not is_finite[position]:
                running.fault = LatentInvalidError("the model's hidden state is not finite")
            else:
                running.num_rows += 1
                running.rows.append(batch.rows[position])
            yield number

    def _deliver(self, running: _Running, tally: _Tally) -> None:
        """Give a request its tokens with their rows; end it if it is done."""
        request, now = running.request, self._clock()
        try:
            while running.has_step:
                if request.status is RequestStatus.PREFILL:
                    request.advance_prefill(request.num_to_prefill)
                    tally.first_token_s.append(request.start_decode(now))
                    tally.num_prompt_tokens += request.num_prompt_tokens
                if not request.rows.is_full:
                    request.rows.append(running.rows.popleft())
                tally.num_new_tokens += 1
                reason = request.append_token(running.token_ids.popleft(), self._eos_token_ids)
                if reason is not None:
                    self._finish(running, now)
                    return
        except DetokenizationError as error:
            self._fail(request, error)
            return
        # A row may arrive before the tokens of the rows before it.
        if running.fault is not None and (not running.rows or running.ended_by is not None):
            self._fail(request, running.fault)
        elif running.ended_by is not None and not running.token_ids:
            message = f"vLLM ended the request early ({running.ended_by})"
            self._fail(request, EngineFailedError(message))

    def _finish(self, running: _Running, now: float) -> None:
        del self._running[running.number]
        if running.ended_by is None or running.token_ids:
            # A stop string; or vLLM is a step ahead, with a token that is past the end.
            self._core.abort(running.number)
        running.request.finish()
        try:
            completion = running.request.completion(now)
        except (LatentInvalidError, DetokenizationError) as error:
            running.request.resolve(error)
        else:
            running.request.resolve(completion)

    def _fail(self, request: Request, error: EngineError) -> None:
        if request.status is RequestStatus.WAITING:
            self._waiting.remove(request)
        elif request.slot is not None and self._running.pop(request.slot, None) is not None:
            self._core.abort(request.slot)
        request.finish()
        request.resolve(error)
