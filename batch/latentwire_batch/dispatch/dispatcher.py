"""Sends rows to replicas: bounded fan-out, retries, and recovery when replicas fail.

Rows that may have ended a replica are sent after all others; see `isolation`.

Pulls a row only when a replica has room for it. Knows neither input formats nor files.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from latentwire import LatentwireError, PlanLatent, QueueFullError
from latentwire.retry import retry_delay
from latentwire_batch.dispatch.attempts import Attempt, ResultSink, RetryPolicy, check_answer
from latentwire_batch.dispatch.broken import BrokenRow, BrokenRows, has_ended
from latentwire_batch.dispatch.isolation import Isolation, is_guilty, suspect
from latentwire_batch.dispatch.verdicts import (
    LOSSES,
    Failure,
    Verdict,
    failure_of,
    failure_of_guilty,
    run_refusal,
    verdict_of,
)
from latentwire_batch.errors import BatchError, ReplicasLostError, UsageError
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.tasks.results import FailedRow, FinishedRow, Suspicion
from latentwire_batch.tasks.rows import Row

# A deployment that is replaced refuses a row once per replica. One refusal says nothing about the
# row; a row that is refused again and again may be the one that ends the replicas.
_MAX_AWAY = 30
_BUSY_DELAY_S = 1.0
# Rows that wait for a retry are held in memory: above this number, no new rows are started.
_MAX_WAITING = 1024

# Sends one row to one replica.
Send = Callable[[Replica, Row], Coroutine[Any, Any, PlanLatent]]
# Returns what an earlier run suspected of a row, by its index.
SuspicionOf = Callable[[int], Suspicion | None]


class Dispatcher:
    """One run over the rows that are left.

    Args:
        fleet: connected replicas.
        rows: the rows to send, in order.
        send: sends a row to a replica.
        sink: takes the results.
        policy: how often and how long to try.
        rng: source of the retry jitter.
        suspicion_of: of the rows, from earlier runs.
        note_progress: called when a row is settled, or suspected more closely.
    """

    def __init__(
        self,
        fleet: Fleet,
        rows: Iterator[Row],
        send: Send,
        sink: ResultSink,
        policy: RetryPolicy,
        rng: random.Random,
        suspicion_of: SuspicionOf = lambda _index: None,
        note_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self._fleet = fleet
        self._rows = rows
        self._send = send
        self._sink = sink
        self._policy = policy
        self._rng = rng
        self._suspicion_of = suspicion_of
        self._note_progress = note_progress
        self._waiting: deque[Attempt] = deque()
        self._isolation = Isolation()
        self._broken = BrokenRows(fleet.has_other_up, policy.patience_s, time.monotonic)
        # Suspects whose last loss, in an earlier run, is not confirmed.
        self._unjudged: deque[Attempt] = deque()
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
            UsageError: when a replica rejects the key, or a setting of the run.
            BatchError: when a result cannot be stored, or the input can no longer be read.
        """
        try:
            while True:
                self._fleet.changed.clear()
                looked_s = time.monotonic()
                await self._judge_broken()
                await self._judge_earlier()
                self._start_attempts()
                if self._fatal is not None:
                    raise self._fatal
                if not self._running and (self._is_stopping or self._is_exhausted()):
                    return
                await self._wait_for_change(looked_s)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
            await self._note_broken()

    async def _judge_broken(self) -> None:
        """Send rows again of which it is known now whether their replica ended."""
        for judged in self._broken.take_judged():
            broken = judged.broken
            if judged.is_end:
                await self._retry_lost(broken.attempt, broken.num_together, broken.replica)
            else:
                await self._retry_failed(broken.attempt, broken.failure, broken.replica)

    async def _judge_earlier(self) -> None:
        """Judge the rows whose connection had broken when an earlier run ended."""
        while self._unjudged:
            attempt = self._unjudged.popleft()
            index, suspicion = attempt.row.index, attempt.suspicion
            assert suspicion is not None
            assert suspicion.unconfirmed is not None
            is_end = has_ended(suspicion.unconfirmed, self._fleet.replicas)
            if is_end:
                await self._retry_lost(attempt, suspicion.unconfirmed.num_together)
                continue
            known = suspicion.without_unconfirmed() if is_end is None else None
            await self._sink.suspected(index, known)
            self._put_back(replace(attempt, suspicion=known))

    async def _note_broken(self) -> None:
        """Store what is suspected of rows that still wait, for the next run."""
        # After an error of the store, this would only be another one.
        with suppress(BatchError):
            for broken in self._broken.take_unknown():
                if broken.has_ended_replica():
                    await self._retry_lost(broken.attempt, broken.num_together, broken.replica)
                else:
                    await self._sink.suspected(broken.attempt.row.index, broken.suspicion())

    def _start_attempts(self) -> None:
        while not self._is_stopping and self._fatal is None:
            started = self._start_waiting() or self._start_next() or self._start_apart()
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
        if self._holds_many:
            return False
        replica = self._fleet.choose(avoid=frozenset())
        if replica is None or self._peek() is None:
            return False
        row, self._next_row = self._next_row, None
        assert row is not None
        self._start(Attempt(row), replica)
        return True

    def _start_apart(self) -> bool:
        """Send a group of suspects to an idle replica, once all other rows are sent.

        Last, because the replicas that they end may not come back.
        """
        first = self._isolation.first
        if first is None or not (self._holds_many or self._peek() is None):
            return False
        replica = self._fleet.choose_idle(avoid=first.tried)
        if replica is None:
            return False
        for attempt in self._isolation.take_group(replica.window):
            self._start(attempt, replica)
        replica.is_apart = True
        return True

    @property
    def _holds_many(self) -> bool:
        return len(self._waiting) + len(self._isolation) + len(self._broken) >= _MAX_WAITING

    def _peek(self) -> Row | None:
        """Return the next row that is no suspect of an earlier run."""
        while self._next_row is None:
            row = next(self._rows, None)
            if row is None:
                return None
            suspicion = self._suspicion_of(row.index)
            if suspicion is None:
                self._next_row = row
            elif suspicion.unconfirmed is not None:
                self._unjudged.append(Attempt(row, suspicion=suspicion))
                self._fleet.changed.set()
            else:
                self._isolation.add(Attempt(row, suspicion=suspicion))
        return self._next_row

    def _is_exhausted(self) -> bool:
        # First, because it may find suspects.
        if self._peek() is not None:
            return False
        return not (self._waiting or self._isolation or self._broken or self._unjudged)

    def _start(self, attempt: Attempt, replica: Replica) -> None:
        # Counted here, because the next row is placed before the task runs.
        replica.num_in_flight += 1
        self._sink.started(attempt.row.index)
        task = asyncio.create_task(self._try(attempt, replica))
        self._running.add(task)
        task.add_done_callback(lambda task: self._end(task, attempt, replica))

    def _end(self, task: asyncio.Task[None], attempt: Attempt, replica: Replica) -> None:
        replica.num_in_flight -= 1
        self._sink.ended(attempt.row.index)
        if replica.num_in_flight == 0:
            replica.is_apart = False
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fatal = self._fatal or task.exception()
        self._fleet.changed.set()

    async def _try(self, attempt: Attempt, replica: Replica) -> None:
        num_losses, sent_s = replica.num_losses, time.monotonic()
        try:
            answer = await replica.answer_of(self._send(replica, attempt.row))
            assert replica.info is not None
            check_answer(answer, replica.info.hidden_size)
        except LatentwireError as error:
            verdict = verdict_of(error)
            if verdict is Verdict.CONNECTION_BROKE:
                self._wait_for_judgement(error, attempt, replica, sent_s)
            # It may have ended and come back since the row was sent.
            elif verdict in LOSSES and num_losses == replica.num_losses:
                self._fleet.lose(replica)
            await self._handle(verdict, error, attempt, replica)
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
                token_ids=answer.token_ids,
                seed=answer.seed,
            )
        )
        self._note_progress()

    def _wait_for_judgement(
        self, error: LatentwireError, attempt: Attempt, replica: Replica, sent_s: float
    ) -> None:
        broken_s = time.monotonic()
        if replica.has_ended_since(sent_s, broken_s) is None:
            self._fleet.lose(replica)
        num_together = replica.num_at_loss
        self._broken.add(
            BrokenRow(attempt, replica, failure_of(error), num_together, sent_s, broken_s)
        )

    async def _handle(
        self, verdict: Verdict, error: LatentwireError, attempt: Attempt, replica: Replica
    ) -> None:
        failure = failure_of(error)
        match verdict:
            case Verdict.RUN_IS_BAD:
                version = "unknown" if replica.info is None else replica.info.version
                raise UsageError(run_refusal(error, replica.name, version)) from error
            case Verdict.ROW_IS_BAD:
                await self._give_up(attempt, failure)
            case Verdict.REPLICA_BUSY:
                delay_s = error.retry_after_s if isinstance(error, QueueFullError) else None
                self._fleet.back_off(replica, _BUSY_DELAY_S if delay_s is None else delay_s)
                self._put_back(attempt)
            case Verdict.REPLICA_AWAY:
                await self._retry_away(attempt, failure, replica)
            case Verdict.REPLICA_ENDED:
                await self._retry_lost(attempt, replica.num_at_loss, replica)
            case Verdict.ROW_FAILED:
                await self._retry_failed(attempt, failure, replica)

    async def _retry_lost(
        self, attempt: Attempt, num_together: int, replica: Replica | None = None
    ) -> None:
        attempt = suspect(attempt, num_together)
        assert attempt.suspicion is not None
        if is_guilty(attempt.suspicion):
            await self._give_up(attempt, failure_of_guilty(attempt.suspicion))
            return
        await self._sink.suspected(attempt.row.index, attempt.suspicion)
        self._note_progress()
        tried = frozenset() if replica is None else {replica.index}
        self._put_back(replace(attempt, tried=attempt.tried | tried))

    async def _retry_away(self, attempt: Attempt, failure: Failure, replica: Replica) -> None:
        attempt = replace(attempt, num_away=attempt.num_away + 1)
        if attempt.num_away >= _MAX_AWAY and replica.num_at_loss == 1:
            await self._give_up(attempt, failure)
            return
        if attempt.num_away > 1:
            attempt = suspect(attempt, replica.num_at_loss, is_lost=False)
        self._put_back(attempt)

    def _put_back(self, attempt: Attempt) -> None:
        if attempt.suspicion is None:
            self._waiting.append(attempt)
        else:
            self._isolation.add(attempt)

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
                # The replica survived the row.
                suspicion=None,
            )
        )

    async def _give_up(self, attempt: Attempt, failure: Failure) -> None:
        row = attempt.row
        await self._sink.failed(FailedRow(row.index, row.task_id, failure.code, failure.message))
        self._note_progress()

    async def _wait_for_change(self, looked_s: float) -> None:
        """Return when a row settles, a replica changes, or a retry is due.

        Args:
            looked_s: before the rows that can be started were looked for, `time.monotonic` seconds.
                What became due since then may have been passed over, and nothing else signals it.

        Raises:
            ReplicasLostError: when no replica was up for longer than the patience allowed.
        """
        # A retry that was due before waits for room on a replica, which `changed` signals.
        due_s = [moment_s for moment_s in self._due_moments_s() if moment_s > looked_s]
        try:
            async with asyncio.timeout(min(due_s) - time.monotonic() if due_s else None):
                await self._fleet.changed.wait()
        except TimeoutError:
            return

    def _due_moments_s(self) -> list[float]:
        """Return when to look again, without any change, `time.monotonic` seconds."""
        due_s = [attempt.not_before_s for attempt in self._waiting]
        due_s += self._broken.due_moments_s()
        due_s += self._fleet.cool_ends_s()
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
