"""One session on a Ray cluster: replicas come up, rows are planned, the driver shows progress."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.protocol import InfoResponse
from latentwire_batch.config import OwnReplicaFields
from latentwire_batch.dispatch.interrupts import Interrupts, run_interruptible
from latentwire_batch.dispatch.progress import ProgressReport
from latentwire_batch.dispatch.session import RowRequest, check_limits
from latentwire_batch.errors import (
    BatchError,
    ReplicasLostError,
    RunInterrupted,
    StorageError,
    UsageError,
)
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.session_time import SessionTime
from latentwire_batch.locations import Folder, LocationError
from latentwire_batch.locations.errors import output_errors
from latentwire_batch.ray.cluster import Placement, connected, import_ray
from latentwire_batch.ray.job import Job
from latentwire_batch.ray.ledger import Event, Ledger, RefusalKind, Settled
from latentwire_batch.ray.stream import Stream
from latentwire_batch.replicas.child_environment import PASSED_ON
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.local_plan import serve_arguments
from latentwire_batch.run import Run
from latentwire_batch.tasks.results import RowState, Suspicion
from latentwire_batch.tasks.rows import Row

_POLL_S = 0.25
_MAX_REASON_CHARS = 300
# In a row, without a row that is settled between them.
_MAX_STARTS = 8
_ERRORS: dict[RefusalKind, type[BatchError]] = {
    "usage": UsageError,
    "storage": StorageError,
    "lost": ReplicasLostError,
}


@dataclass(frozen=True)
class RaySessionPlan:
    """The work of one session.

    Attributes:
        run: of this process.
        rows: that are to be sent, in order; read while others are planned.
        num_rows: how many these are.
        request: what is sent with every row.
        open_store: returns the store once the served model is known; may refuse the model.
    """

    run: Run
    rows: Iterator[Row]
    num_rows: int
    request: RowRequest
    open_store: Callable[[ModelIdentity], Awaitable[RowStore]]


def run_ray_session(plan: RaySessionPlan) -> FleetSummary:
    """Plan every pending row; the replicas write the results to logs of their own.

    Returns:
        The replicas that were up.

    Raises:
        BatchError: when the run cannot continue; finished rows are stored.
        RunInterrupted: when a signal ended it before all rows were settled.
    """
    run = plan.run
    parts = run.destination.parts()
    time = SessionTime(parts)
    with connected(run.settings, run.console.say) as placement, _token(run, parts) as token:
        ray = import_ray()
        # Next to the driver, so that the loss of another node does not end it.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote()
        job = _job(plan, parts, token, placement)
        stream = Stream(plan.rows, plan.num_rows, job, ledger, placement)
        try:
            session = _Session(plan, ledger, stream, placement.replicas, time)
            return run_interruptible(session.run())
        except ray.exceptions.RayError as error:
            raise _lost(error) from error


def _job(plan: RaySessionPlan, parts: Folder | None, token: str, placement: Placement) -> Job:
    run = plan.run
    settings = run.settings
    own: OwnReplicaFields = settings
    if not placement.gpus and settings.engine != "vllm":
        # What Ray counts is what torch may use; a GPU of the node belongs to others.
        update = {"threads": placement.cpus, "device": settings.device or "cpu"}
        own = settings.model_copy(update=update)
    # Rows that do not use the model's own template do not need it to work.
    flags = () if settings.chat_template == "auto" else ("--ignore-chat-template",)
    return Job(
        settings=settings.model_copy(update={"api_key": None, "api_key_file": None}),
        root=run.layout.root.absolute(),
        parts=parts,
        token=token,
        serve_flags=(*serve_arguments(own), *flags),
        environ={name: value for name, value in os.environ.items() if name.upper() in PASSED_ON},
        num_rows=run.data.num_rows,
        request=plan.request,
        compression=run.wanted_settings(None).compression,
    )


@contextmanager
def _token(run: Run, parts: Folder | None) -> Iterator[str]:
    """Write a file that shows the replicas that they see where the rows go."""
    name = f"ray-{uuid.uuid4().hex}"
    if parts is None:
        path = run.layout.partial / name
        path.touch()
        try:
            yield name
        finally:
            path.unlink(missing_ok=True)
        return
    with output_errors("cannot be written"):
        parts.write(name, b"1")
    try:
        yield name
    finally:
        # What is left is removed at the end of the run.
        with suppress(LocationError):
            parts.remove([name])


class _Session:
    def __init__(
        self,
        plan: RaySessionPlan,
        ledger: Any,
        stream: Stream,
        num_replicas: int,
        time: SessionTime,
    ) -> None:
        self._plan = plan
        self._console = plan.run.console
        self._ledger = ledger
        self._stream = stream
        self._time = time
        self._interrupts = Interrupts(self._console.say)
        self._infos: dict[str, InfoResponse] = {}
        self._identity: ModelIdentity | None = None
        self._in_flight: set[int] = set()
        self._num_left = 0
        self._num_starts = 0
        # All replicas may start before the first of them has loaded the model.
        self._max_starts = _MAX_STARTS + num_replicas
        self._is_stopping = False
        self._progress: ProgressReport | None = None

    async def run(self) -> FleetSummary:
        self._interrupts.install()
        streaming = asyncio.create_task(self._stream.run())
        try:
            await self._first_replica(streaming)
            assert self._identity is not None
            store = await self._plan.open_store(self._identity)
            async with self._time.recorded(store):
                await self._plan_rows(store, streaming)
        finally:
            streaming.cancel()
            await asyncio.gather(streaming, return_exceptions=True)
            self._stream.close()
        return self._summary()

    async def _first_replica(self, streaming: asyncio.Task[None]) -> None:
        """Wait until a replica has loaded the model."""
        while self._identity is None:
            await self._poll(streaming)

    async def _plan_rows(self, store: RowStore, streaming: asyncio.Task[None]) -> None:
        pending, suspicions = await asyncio.to_thread(_left, store)
        num_own = store.num_rows - store.count(RowState.OUTSIDE)
        num_settled = num_own - store.count(RowState.PENDING)
        self._num_left = int(pending.sum())
        check_limits(self._plan.request, self._infos.values())
        await self._ledger.open.remote(pending, suspicions)
        with ProgressReport(self._console, num_own, num_settled) as progress:
            self._progress = progress
            self._interrupts.drain_first(self, progress.drain)
            showing = asyncio.create_task(progress.keep_showing())
            try:
                while not streaming.done() and not (self._is_stopping and not self._in_flight):
                    await self._poll(streaming)
                await self._take_events()
            finally:
                showing.cancel()
        if self._is_stopping and self._num_left:
            raise RunInterrupted

    def stop(self) -> None:
        """Let no more rows in; the session ends when none are in flight."""
        self._is_stopping = True
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        await self._ledger.stop.remote()

    async def _poll(self, streaming: asyncio.Task[None]) -> None:
        """Handle what has happened, and wait a moment.

        Raises:
            BatchError: when the run cannot continue.
        """
        await self._take_events()
        done, _ = await asyncio.wait([streaming], timeout=_POLL_S)
        if done and streaming.exception() is not None:
            # The replica's own reason, if it gave one, arrives before Ray's.
            await self._take_events()
            raise _lost(streaming.exception())

    async def _take_events(self) -> None:
        for event in await self._ledger.take_events.remote():
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event.kind:
            case "starting":
                self._num_starts += 1
                if self._num_starts > self._max_starts:
                    raise ReplicasLostError(
                        f"replicas started {self._num_starts} times without planning a row; "
                        "finished rows are kept, rerun the same command to resume"
                    )
            case "joined":
                self._join(event)
            case "left":
                self._in_flight -= set(event.indices)
                for index in event.indices:
                    self._row_ended(index)
                self._console.say(
                    f"a replica ended with {len(event.indices)} rows in flight; Ray restarted it"
                )
            case "refused":
                kind, message = event.refusal
                raise _ERRORS[kind](message)
            case "began":
                self._in_flight |= set(event.indices)
                for index in event.indices:
                    self._row_started(index)
            case "settled":
                self._num_starts = 0
                for row in event.settled:
                    self._settle(row)

    def _join(self, event: Event) -> None:
        info = InfoResponse.model_validate(event.info)
        identity = ModelIdentity.of(info)
        self._infos[event.member.actor] = info
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise UsageError(
                f"the replicas do not serve the same model: one serves {self._identity}, another "
                f"{identity}"
            )

    def _settle(self, row: Settled) -> None:
        self._in_flight.discard(row.index)
        self._num_left -= 1
        if self._progress is None:
            return
        if row.code is None:
            self._progress.row_finished(row.completion_tokens, row.index)
        else:
            self._progress.row_failed(row.index, row.code, row.message)
            self._progress.row_ended(row.index)

    def _row_started(self, index: int) -> None:
        if self._progress is not None:
            self._progress.row_started(index)

    def _row_ended(self, index: int) -> None:
        if self._progress is not None:
            self._progress.row_ended(index)

    def _summary(self) -> FleetSummary:
        infos = self._infos.values()
        return FleetSummary(
            count=len(infos),
            devices=tuple(sorted({info.device for info in infos})),
            versions=tuple(sorted({info.version for info in infos})),
        )


def _left(store: RowStore) -> tuple[npt.NDArray[np.bool_], dict[int, Suspicion]]:
    """Return which rows are pending, as `[num_rows]`, and what is suspected of them."""
    pending = store.pending()
    found = {index: each for index, each in store.suspicions().items() if pending[index]}
    # The replicas of the cluster cannot tell whether a given one has ended.
    known = {index: each.without_unconfirmed() for index, each in found.items()}
    return pending, {index: each for index, each in known.items() if each is not None}


def _lost(error: BaseException | None) -> BatchError:
    if isinstance(error, BatchError):
        return error
    lines = str(error).splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:_MAX_REASON_CHARS]
    return ReplicasLostError(
        f"Ray cannot continue ({reason}); finished rows are kept, rerun the same command to resume"
    )
