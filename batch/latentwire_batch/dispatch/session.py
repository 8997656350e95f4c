"""One session: replicas come up, rows are sent and stored, replicas are released."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from latentwire import PlanLatent, PlanOptions
from latentwire.protocol import InfoResponse
from latentwire_batch.console import Console
from latentwire_batch.dispatch.attempts import RetryPolicy
from latentwire_batch.dispatch.dispatcher import Dispatcher
from latentwire_batch.dispatch.interrupts import Interrupts
from latentwire_batch.dispatch.progress import OtherProcesses, ProgressReport
from latentwire_batch.dispatch.row_sink import Prepare, Progress, RowSink
from latentwire_batch.dispatch.seeds import Seeds
from latentwire_batch.dispatch.store import Store
from latentwire_batch.dispatch.watchdog import Guard, guarded
from latentwire_batch.errors import InputError, RunInterrupted, UsageError
from latentwire_batch.replicas.fleet import Fleet, FleetSummary
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.replicas.source import ReplicaSource
from latentwire_batch.tasks.results import RowState
from latentwire_batch.tasks.rows import Row


@dataclass(frozen=True)
class RowRequest:
    """What is sent with every row.

    Attributes:
        k: hidden rows to keep; None: all.
        options: prompt and sampling options, without a seed.
        seeds: of the dataset and its rows.
    """

    k: int | None
    options: PlanOptions
    seeds: Seeds

    async def send(self, replica: Replica, row: Row) -> PlanLatent:
        """Send one row to one replica; raises LatentwireError when it gives no latent."""
        options: PlanOptions = {**self.options, "seed": self.seeds.of_row(row.index)}
        return await replica.client.plan_latent(
            row.task,
            k=self.k,
            task_id=row.task_id,
            request_id=f"row-{row.index}",
            **options,
        )


class Helpers(OtherProcesses, Protocol):
    """Further processes that send rows of the same store, as their first process sees them."""

    def interrupt(self) -> None:
        """Pass on a signal that interrupts the session."""
        ...

    async def all_done(self) -> None:
        """Wait until their rows are settled, or until they have ended after a signal.

        Raises:
            BatchError: when one cannot continue.
        """
        ...


class SessionProgress(Progress, Protocol):
    """Shows or reports the progress of a session, which enters it as a context."""

    def __enter__(self) -> SessionProgress:
        """Start the clock."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Show the final numbers."""
        ...

    async def keep_showing(self) -> None:
        """Show that time passes; runs until cancelled."""
        ...

    def drain(self) -> str | None:
        """Describe the rows in flight, which are the last ones; None: another process does."""
        ...


@dataclass(frozen=True)
class SessionPlan:
    """The work of one session.

    Attributes:
        rows: reads the input from its start.
        request: what is sent with every row.
        source: where the replicas come from.
        open_store: returns the store once the served model is known; may refuse the model.
        concurrency: rows in flight per replica; None: the replica's slots.
        max_retries: further tries for a row that failed.
        watch: runs alongside without end, and fails when the run cannot continue.
        prepare: see `RowSink`.
        slots_of: see `Fleet`.
        helpers: further processes that send rows of the store; None: there are none.
        progress: shows the rows, given how many the session has to send; None: on the console.
    """

    rows: Callable[[], Iterator[Row]]
    request: RowRequest
    source: ReplicaSource
    open_store: Callable[[ModelIdentity], Awaitable[Store]]
    concurrency: int | None
    max_retries: int
    watch: Callable[[], Coroutine[Any, Any, None]] | None = None
    prepare: Prepare | None = None
    slots_of: Callable[[int], int] = lambda num_slots: num_slots
    helpers: Helpers | None = None
    progress: Callable[[int], SessionProgress] | None = None


async def run_session(plan: SessionPlan, console: Console) -> FleetSummary:
    """Send every pending row and store its result.

    Args:
        plan: the work.
        console: for notices and progress.

    Returns:
        The replicas that were up.

    Raises:
        BatchError: when the run cannot continue; finished rows are stored.
        RunInterrupted: when a signal stopped it before all rows were settled.
        asyncio.CancelledError: when a second signal ended it at once.
    """
    return await _Session(plan, console).run()


class _Session:
    def __init__(self, plan: SessionPlan, console: Console) -> None:
        self._plan = plan
        self._console = console
        pass_on = (lambda: None) if plan.helpers is None else plan.helpers.interrupt
        self._interrupts = Interrupts(console.say, pass_on)
        self._guard = Guard()

    async def run(self) -> FleetSummary:
        source, guard = self._plan.source, self._guard
        self._interrupts.install()
        async with self._replicas() as fleet:
            identity = await guarded(fleet.connect(source.patience_s), guard)
            source.note_ready()
            infos = (replica.info for replica in fleet.replicas)
            check_limits(self._plan.request, [info for info in infos if info is not None])
            store = await guarded(self._plan.open_store(identity), guard)
            await self._send_rows(store, fleet)
            if store.count(RowState.PENDING):
                if self._interrupts.count:
                    raise RunInterrupted
                raise InputError("--dataset: has fewer rows than when it was first read")
            return fleet.summary()

    @asynccontextmanager
    async def _replicas(self) -> AsyncIterator[Fleet]:
        plan, source = self._plan, self._plan.source
        try:
            clients = {url: source.connect(url) for url in await source.start()}
            fleet = Fleet(clients, plan.concurrency, self._console.say, plan.slots_of)
            self._guard.add(source.watch(lambda url: fleet.add(url, source.connect(url))))
            if plan.watch is not None:
                self._guard.add(plan.watch())
            try:
                yield fleet
            finally:
                await fleet.aclose()
        finally:
            await source.stop(at_once=self._interrupts.count > 1)
            await self._guard.aclose()

    async def _send_rows(self, store: Store, fleet: Fleet) -> None:
        plan = self._plan
        with self._progress(store) as progress:
            sink = RowSink(store, progress, plan.prepare)
            dispatcher = Dispatcher(
                fleet,
                _pending(plan.rows(), store),
                plan.request.send,
                sink,
                RetryPolicy(plan.max_retries, plan.source.patience_s),
                random.Random(),
                store.suspicion,
                plan.source.note_progress,
            )
            self._interrupts.drain_first(dispatcher, progress.drain)
            showing = asyncio.create_task(progress.keep_showing())
            syncing = asyncio.create_task(sink.keep_synced())
            try:
                await guarded(dispatcher.run(), self._guard, syncing)
                await sink.aclose()
                if plan.helpers is not None:
                    await guarded(plan.helpers.all_done(), self._guard)
            finally:
                showing.cancel()
                syncing.cancel()
                # The store is closed next, so no write may still run.
                sink.abandon()

    def _progress(self, store: Store) -> SessionProgress:
        num_pending, helpers = store.count(RowState.PENDING), self._plan.helpers
        if self._plan.progress is not None:
            return self._plan.progress(num_pending)
        num_elsewhere = store.count(RowState.ELSEWHERE)
        num_shown = store.num_rows - store.count(RowState.OUTSIDE)
        num_left = num_pending
        if helpers is None:
            num_shown -= num_elsewhere
        else:
            num_left += num_elsewhere
        return ProgressReport(
            self._console,
            num_shown,
            num_shown - num_left,
            others=helpers,
            num_unsettled=num_pending,
        )


def check_limits(request: RowRequest, infos: Collection[InfoResponse]) -> None:
    """Refuse a run in which every row would be refused.

    Args:
        request: what is sent with every row.
        infos: of the replicas that are up.

    Raises:
        UsageError: when the replicas' limit leaves no room for a prompt.
    """
    wanted = request.options.get("max_new_tokens", 0)
    most = min((info.limits.max_new_tokens or wanted for info in infos), default=wanted)
    if wanted > most:
        raise UsageError(f"--max-new-tokens: {wanted} exceeds the replicas' limit, {most}")
    limit = min(info.limits.max_model_len for info in infos)
    if wanted >= limit:
        raise UsageError(
            f"--max-new-tokens: {wanted} leaves no room for a prompt, because the replicas allow "
            f"{limit} tokens for prompt and plan together; give fewer, or serve with a larger "
            "--max-model-len"
        )


def _pending(rows: Iterator[Row], store: Store) -> Iterator[Row]:
    for row in rows:
        if row.index >= store.num_rows:
            raise InputError("--dataset: has more rows than when it was first read")
        if store.is_pending(row.index):
            yield row
