"""Sends rows to replicas: bounded fan-out, retries, and recovery when replicas fail.

Pulls a row only when a replica has room for it. Knows neither input formats nor files.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from latentwire import LatentwireError, PlanLatent, QueueFullError
from latentwire.retry import retry_delay
from latentwire_batch.dispatch.attempts import Attempt, ResultSink, RetryPolicy, check_answer
from latentwire_batch.dispatch.verdicts import Failure, Verdict, failure_of, verdict_of
from latentwire_batch.errors import ReplicasLostError, UsageError
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.tasks.results import FailedRow, FinishedRow
from latentwire_batch.tasks.rows import Row

# A row counts as the cause only after this many replicas went away with it in flight, because
# replicas are restarted and rescheduled for many other reasons.
MAX_REPLICAS_LOST_PER_ROW = 10
_BUSY_DELAY_S = 1.0
# Rows that wait for a retry are held in memory: above this number, no new rows are started.
_MAX_WAITING = 1024

# Sends one row to one replica.
Send = Callable[[Replica, Row], Awaitable[PlanLatent]]


class Dispatcher:
    """One run over the rows that are left.

    Args:
        fleet: connected replicas.
        rows: the rows to send, in order.
        send: sends a row to a replica.
        sink: takes the results.
        policy: how often and how long to try.
        rng: source of the retry jitter.
    """

    def __init__(
        self,
        fleet: Fleet,
        rows: Iterator[Row],
        send: Send,
        sink: ResultSink,
        policy: RetryPolicy,
        rng: random.Random,
    ) -> None:
        self._fleet = fleet
        self._rows = rows
        self._send = send
        self._sink = sink
        self._policy = policy
        self._rng = rng
        self._waiting: deque[Attempt] = deque()
        self._next_row: Row | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._fatal: BaseException | None = None

    def stop(self) -> None:
        """Start no more rows; `run` returns when the in-flight rows are stored."""
        self._is_stopping = True
        self._fleet.changed.set()

    async def run(self) -> None:
        """Send all rows and store their results.

        Raises:
            ReplicasLostError: when no replica was up for longer than the patience allowed.
            UsageError: when a replica rejects the key.
            BatchError: when a result cannot be stored, or the input can no longer be read.
        """
        try:
            while True:
                self._fleet.changed.clear()
                self._start_attempts()
                if self._fatal is not None:
                    raise self._fatal
                if not self._running and (self._is_stopping or self._is_exhausted()):
                    return
                await self._wait_for_change()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _start_attempts(self) -> None:
        while not self._is_stopping and self._fatal is None:
            started = self._start_waiting() or self._start_next()
            if not started:
                return

    def _start_waiting(self) -> bool:
        """Start the first waiting row that a replica can take now."""
        now_s = time.monotonic()
        for position, attempt in enumerate(self._waiting):
            if attempt.not_before_s > now_s:
                continue
            replica = self._fleet.choose(avoid=attempt.tried)
            if replica is not None:
                del self._waiting[position]
                self._start(attempt, replica)
                return True
        return False

    def _start_next(self) -> bool:
        if len(self._waiting) >= _MAX_WAITING:
            return False
        replica = self._fleet.choose(avoid=frozenset())
        if replica is None or self._peek() is None:
            return False
        row, self._next_row = self._next_row, None
        assert row is not None
        self._start(Attempt(row), replica)
        return True

    def _peek(self) -> Row | None:
        if self._next_row is None:
            self._next_row = next(self._rows, None)
        return self._next_row

    def _is_exhausted(self) -> bool:
        return not self._waiting and self._peek() is None

    def _start(self, attempt: Attempt, replica: Replica) -> None:
        # Counted here, because the next row is placed before the task runs.
        replica.num_in_flight += 1
        task = asyncio.create_task(self._try(attempt, replica))
        self._running.add(task)
        task.add_done_callback(lambda task: self._end(task, replica))

    def _end(self, task: asyncio.Task[None], replica: Replica) -> None:
        replica.num_in_flight -= 1
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fatal = self._fatal or task.exception()
        self._fleet.changed.set()

    async def _try(self, attempt: Attempt, replica: Replica) -> None:
        try:
            answer = await self._send(replica, attempt.row)
            assert replica.info is not None
            check_answer(answer, replica.info.hidden_size)
        except LatentwireError as error:
            await self._handle(error, attempt, replica)
            return
        replica.note_answer()
        await self._sink.finished(
            FinishedRow(
                row=attempt.row,
                plan=answer.plan,
                hidden_state=answer.hidden_state,
                prompt_tokens=answer.usage.prompt_tokens,
                completion_tokens=answer.usage.completion_tokens,
                finish_reason=answer.finish_reason,
            )
        )

    async def _handle(self, error: LatentwireError, attempt: Attempt, replica: Replica) -> None:
        failure = failure_of(error)
        match verdict_of(error):
            case Verdict.RUN_IS_BAD:
                raise UsageError(f"--api-key: {replica.name} rejected the key") from error
            case Verdict.ROW_IS_BAD:
                await self._give_up(attempt, failure)
            case Verdict.REPLICA_BUSY:
                delay_s = error.retry_after_s if isinstance(error, QueueFullError) else None
                self._fleet.back_off(replica, _BUSY_DELAY_S if delay_s is None else delay_s)
                self._waiting.append(attempt)
            case Verdict.REPLICA_AWAY:
                self._fleet.lose(replica)
                await self._retry_away(attempt, failure)
            case Verdict.REPLICA_LOST:
                self._fleet.lose(replica)
                await self._retry_lost(attempt, failure)
            case Verdict.ROW_FAILED:
                await self._retry_failed(attempt, failure, replica)

    async def _retry_lost(self, attempt: Attempt, failure: Failure) -> None:
        attempt = replace(attempt, num_lost=attempt.num_lost + 1)
        if attempt.num_lost >= MAX_REPLICAS_LOST_PER_ROW:
            await self._give_up(attempt, failure)
        else:
            self._waiting.append(attempt)

    async def _retry_away(self, attempt: Attempt, failure: Failure) -> None:
        attempt = replace(attempt, num_away=attempt.num_away + 1)
        if attempt.num_away >= self._policy.max_away:
            await self._give_up(attempt, failure)
        else:
            self._waiting.append(attempt)

    async def _retry_failed(self, attempt: Attempt, failure: Failure, replica: Replica) -> None:
        if attempt.num_failures >= self._policy.max_retries:
            await self._give_up(attempt, failure)
            return
        delay_s = retry_delay(attempt.num_failures, None, self._rng)
        self._waiting.append(
            replace(
                attempt,
                num_failures=attempt.num_failures + 1,
                tried=attempt.tried | {replica.index},
                not_before_s=time.monotonic() + delay_s,
            )
        )

    async def _give_up(self, attempt: Attempt, failure: Failure) -> None:
        row = attempt.row
        await self._sink.failed(FailedRow(row.index, row.task_id, failure.code, failure.message))

    async def _wait_for_change(self) -> None:
        """Return when a row settles, a replica changes, or a retry is due.

        Raises:
            ReplicasLostError: when no replica was up for longer than the patience allowed.
        """
        now_s = time.monotonic()
        # A retry that is overdue waits for room on a replica, which `changed` signals.
        ahead_s = [due_s - now_s for due_s in self._due_moments_s() if due_s > now_s]
        try:
            async with asyncio.timeout(min(ahead_s, default=None)):
                await self._fleet.changed.wait()
        except TimeoutError:
            return

    def _due_moments_s(self) -> list[float]:
        """Return when to look again, without any change, `time.monotonic` seconds."""
        due_s = [attempt.not_before_s for attempt in self._waiting]
        cool_end_s = self._fleet.next_cool_end_s()
        if cool_end_s is not None:
            due_s.append(cool_end_s)
        down_since_s = self._fleet.all_down_since_s
        if down_since_s is not None and not self._running:
            give_up_s = down_since_s + self._policy.patience_s
            if give_up_s <= time.monotonic():
                raise ReplicasLostError(
                    f"no replica has answered for {self._policy.patience_s:g} s; finished rows are "
                    "kept, rerun the same command to resume"
                )
            due_s.append(give_up_s)
        return due_s
