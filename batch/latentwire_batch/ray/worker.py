"""One replica: an actor of Ray Data that runs the engine and writes its rows to its own log."""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import socket
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from latentwire import InvalidArgumentError, LatentwireError, PlanOptions, QueueFullError
from latentwire.retry import retry_delay
from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.compression.settings import chosen_compressors
from latentwire_batch.compression.stored_form import LatentEncoder, StoredForm
from latentwire_batch.dispatch.attempts import check_answer
from latentwire_batch.dispatch.verdicts import (
    LOSSES,
    Failure,
    Verdict,
    failure_of,
    failure_of_guilty,
    run_refusal,
    verdict_of,
)
from latentwire_batch.errors import BatchError, StorageError, UsageError
from latentwire_batch.locations import RemotePath
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.room import named_disk
from latentwire_batch.ray.gate import Gate
from latentwire_batch.ray.job import Engine, Job
from latentwire_batch.ray.ledger import Begun, Member, RefusalKind, Settled
from latentwire_batch.ray.part import check_place, open_part
from latentwire_batch.ray.running import RunningRows
from latentwire_batch.replicas.child_environment import child_environment
from latentwire_batch.tasks.results import FailedRow, FinishedRow, NotStorableError, Suspicion
from latentwire_batch.tasks.rows import Row

Block = dict[str, npt.NDArray[Any]]

# Loaded by name: this package does not build on the service, whose engine the actor runs.
_ENGINE_MODULE = "latentwire_service.ray.in_process"
_BUSY_DELAY_S = 1.0
_HANG_CHECK_S = 10.0


class Worker:
    """Plans blocks of rows; Ray Data calls it on several threads, one block each.

    Args:
        job: the work.
        ledger: handle of the `Ledger` actor.
        actor_id: returns the id of this actor, which stays when Ray restarts it.

    Raises:
        BatchError: when the replica cannot serve; the ledger has the reason.
    """

    def __init__(self, job: Job, ledger: Any, actor_id: Callable[[], str]) -> None:
        self._job = job
        self._ledger = ledger
        self._member = Member(actor_id(), uuid.uuid4().hex)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rows", daemon=True)
        self._thread.start()
        try:
            with self._reported():
                self._open()
        except BaseException:
            self._end_loop()
            raise

    def __call__(self, block: Block) -> Block:
        """Plan the rows of blocks that are still to be done.

        Args:
            block: `id`, the numbers of the blocks, whose rows the ledger has.

        Returns:
            What was given. The latents are in the log.
        """
        with self._reported():
            self._call(lambda: self._plan_blocks(block["id"].tolist()))
        return block

    def close(self) -> None:
        """End the threads. Ray Data ends the whole process instead."""
        self._end_loop()
        self._part.close()

    def _end_loop(self) -> None:
        self._call(_cancel_others)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Await what a call returns, on the loop."""

        async def awaited() -> Any:
            return await call()

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Tell the driver why work fails, because Ray's own report is a traceback."""
        is_remote = isinstance(self._job.settings.output_dir, RemotePath)
        try:
            # The directory of the rows is the driver's, which all nodes share.
            with named_disk(OutputLayout(self._job.root, is_remote)):
                yield
        except BatchError as error:
            kind, reason = _kind_of(error), str(error)
            self._call(lambda: self._ledger.refuse.remote(self._member, kind, reason))
            raise

    def _open(self) -> None:
        """Load the model, and join the run."""
        job, settings = self._job, self._job.settings
        check_place(job)
        self._call(lambda: self._ledger.start.remote(self._member))
        self._engine = _open_engine(job)
        info = self._engine.info
        self._encoder = _encoder(job, info.hidden_size)
        # Ray runs some calls of an actor at a time. If all of them waited for rows, the call that
        # brings the rows would not run.
        self._taking = asyncio.Lock()
        self._gate = Gate()
        self._slots = asyncio.Semaphore(settings.concurrency or info.limits.max_slots)
        self._rng = random.Random()
        shown = info.model_dump(mode="json")
        self._call(lambda: self._ledger.join.remote(self._member, shown))
        self._running = RunningRows(self._note)
        self._part = open_part(job, self._member.process, self._announce, self._has_free_slot)
        self._watching = asyncio.run_coroutine_threadsafe(self._end_when_hung(), self._loop)

    async def _announce(self, settled: list[Settled]) -> None:
        await self._ledger.settle.remote(self._member, settled)

    async def _note(self, started: Sequence[int], ended: Sequence[int]) -> bool:
        may_start: bool = await self._ledger.note.remote(self._member, started, ended)
        return may_start

    def _has_free_slot(self) -> bool:
        return not self._slots.locked()

    async def _end_when_hung(self) -> None:
        while True:
            await asyncio.sleep(_HANG_CHECK_S)
            if self._engine.is_hung():
                _end_process()

    async def _plan_blocks(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            async with self._taking:
                rows = await self._ledger.take.remote(number)
            await self._plan(rows)
            await self._ledger.done.remote(number)

    async def _plan(self, rows: Sequence[Row]) -> None:
        by_index = {row.index: row for row in rows}
        begun: Begun = await self._ledger.begin.remote(self._member, list(by_index))
        work = [self._plan_together(by_index[index]) for index in begun.together]
        await asyncio.gather(*work, self._plan_apart(begun, by_index))

    async def _plan_together(self, row: Row) -> None:
        async with self._gate.together(), self._slots:
            results = await self._results([row])
            await self._part.room()
        for result in results:
            await self._settle(result)

    async def _plan_apart(self, begun: Begun, by_index: dict[int, Row]) -> None:
        for index, suspicion in begun.guilty:
            failure = failure_of_guilty(suspicion)
            await self._settle(_failed(by_index[index], failure))
        waiting = sorted(begun.apart, key=lambda each: each[1].group_size)
        while waiting:
            size = waiting[0][1].group_size
            group, waiting = waiting[:size], waiting[size:]
            await self._plan_group(group, by_index)

    async def _plan_group(
        self, group: Sequence[tuple[int, Suspicion]], by_index: dict[int, Row]
    ) -> None:
        for index, suspicion in group:
            await self._part.suspected(index, suspicion)
        async with self._gate.alone():
            results = await self._results([by_index[index] for index, _ in group])
        for result in results:
            await self._settle(result)

    async def _settle(self, result: FinishedRow | FailedRow) -> None:
        if isinstance(result, FinishedRow):
            await self._part.finished(result)
        else:
            await self._part.failed(result)

    async def _results(self, rows: Sequence[Row]) -> Sequence[FinishedRow | FailedRow]:
        """Plan rows, which share what happens to the replica; none when the run stops."""
        indices = [row.index for row in rows]
        if not await self._running.start(indices):
            return ()
        try:
            return await asyncio.gather(*map(self._result, rows))
        finally:
            self._running.end(indices)

    async def _result(self, row: Row) -> FinishedRow | FailedRow:
        """Plan a row, and try again where that may help."""
        num_failures = 0
        while True:
            try:
                return await self._planned(row)
            except LatentwireError as error:
                verdict = verdict_of(error)
                if verdict in LOSSES:
                    # The engine does not come back in this process. Ray starts another one.
                    _end_process()
                if verdict is Verdict.RUN_IS_BAD:
                    version = self._engine.info.version
                    raise UsageError(run_refusal(error, "a replica", version)) from error
                if verdict is Verdict.REPLICA_BUSY:
                    delay_s = error.retry_after_s if isinstance(error, QueueFullError) else None
                    await asyncio.sleep(delay_s or _BUSY_DELAY_S)
                    continue
                is_row_bad = verdict is Verdict.ROW_IS_BAD
                if is_row_bad or num_failures >= self._job.settings.max_retries:
                    return _failed(row, failure_of(error))
                await asyncio.sleep(retry_delay(num_failures, None, self._rng))
                num_failures += 1

    async def _planned(self, row: Row) -> FinishedRow | FailedRow:
        request = self._job.request
        options: PlanOptions = {**request.options, "seed": request.seeds.of_row(row.index)}
        answer = await self._engine.plan_latent(
            row.task,
            k=request.k,
            task_id=row.task_id,
            timeout_s=self._job.settings.timeout,
            options=options,
        )
        check_answer(answer, self._engine.info.hidden_size)
        finished = FinishedRow(
            row=row,
            plan=answer.plan,
            hidden_state=answer.hidden_state,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            finish_reason=answer.finish_reason,
            token_ids=answer.token_ids,
            seed=answer.seed,
        )
        if self._encoder is None:
            return finished
        try:
            matrices = await asyncio.to_thread(self._encoder.encode, finished.hidden_state)
        except NotStorableError as error:
            return _failed(row, Failure(error.code, str(error)))
        return replace(finished, matrices=tuple(matrices.values()))


def _open_engine(job: Job) -> Engine:
    """Load the model in this process.

    Raises:
        UsageError: when the model or a setting cannot be used.
    """
    kept = child_environment(os.environ, None)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(job.environ)
    try:
        module = importlib.import_module(_ENGINE_MODULE)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"node {socket.gethostname()} of the Ray cluster lacks {error.name}: install "
            'latentwire there, as here: pip install "latentwire[ray]"'
        ) from error
    try:
        engine: Engine = module.open_engine(job.serve_flags)
    except (ValueError, InvalidArgumentError) as error:
        raise UsageError(f"a replica cannot serve the model: {error}") from error
    return engine


def _encoder(job: Job, width: int) -> LatentEncoder | None:
    """Return what stores latents; None: they are stored as they come.

    Raises:
        UsageError: when the compressors are not those of the driver.
    """
    settings = job.settings
    compressors = chosen_compressors(settings, settings.k)
    form = StoredForm(compressors, settings.replace, settings.storage_dtype)
    if CompressorFacts.of(form) != job.compression:
        raise UsageError(
            f"--compressor: node {socket.gethostname()} of the Ray cluster has another version of "
            "a compressor"
        )
    return None if form.is_plain else form.encoder(width)


def _kind_of(error: BatchError) -> RefusalKind:
    if isinstance(error, UsageError):
        return "usage"
    return "storage" if isinstance(error, StorageError) else "lost"


def _failed(row: Row, failure: Failure) -> FailedRow:
    return FailedRow(row.index, row.task_id, failure.code, failure.message)


async def _cancel_others() -> None:
    """End all other tasks of this loop: those that still wait when a loop is closed are lost."""
    # A task that ends may start another one.
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _end_process() -> None:
    os._exit(1)
