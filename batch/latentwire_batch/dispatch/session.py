"""One stretch of asking: replicas up, rows out and back, replicas down. The only asyncio owner."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from latentwire import AsyncClient, PlanLatent, PlanOptions
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.dispatch.attempts import RetryPolicy
from latentwire_batch.dispatch.dispatcher import Dispatcher
from latentwire_batch.dispatch.interrupts import Interrupts
from latentwire_batch.dispatch.progress import ProgressReport
from latentwire_batch.dispatch.row_sink import RowSink
from latentwire_batch.dispatch.seeds import row_seed
from latentwire_batch.dispatch.watchdog import Guard, guarded
from latentwire_batch.errors import InputError, ReplicasLostError
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.ranks.rank import ALONE, Rank
from latentwire_batch.replicas.endpoints import discover, resolve_endpoints
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.local import LocalReplicas, plan_local_replicas
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.run_settings import ModelIdentity
from latentwire_batch.tasks.results import RowState
from latentwire_batch.tasks.rows import Row

# Loading a model takes as long as it takes; that a child died is seen at once.
_OWN_REPLICAS_PATIENCE_S = 86_400.0
_PROBE_PATIENCE_S = 2.0
# A fleet that is replaced refuses a row once per replica; own replicas refuse none while they live,
# and are not started again without end.
_MAX_AWAY, _MAX_AWAY_OF_OWN = 30, 3


@dataclass(frozen=True)
class SessionPlan:
    """What a session works on.

    Attributes:
        settings: of the run.
        rows: opens the input again, from its start.
        seed: the dataset's seed.
        open_store: gives the store once it is known what model is served; may refuse it.
        rank: of this process; one of several starts a replica for itself only.
        watch: runs beside, without end, and fails when the run cannot go on.
    """

    settings: CollectSettings
    rows: Callable[[], Iterator[Row]]
    seed: int
    open_store: Callable[[ModelIdentity], Awaitable[RowStore]]
    rank: Rank = ALONE
    watch: Callable[[], Coroutine[Any, Any, None]] | None = None


@dataclass(frozen=True)
class SessionOutcome:
    """How a session ended.

    Attributes:
        was_interrupted: whether it was told to stop before all rows were done.
        fleet: description of the replicas, for the manifest.
    """

    was_interrupted: bool
    fleet: dict[str, Any]


async def run_session(
    plan: SessionPlan, console: Console, clock: Callable[[], float]
) -> SessionOutcome:
    """Ask for every pending row.

    Args:
        plan: what to work on.
        console: for notices and progress.
        clock: monotonic seconds.

    Raises:
        BatchError: when the run cannot go on; what is finished is stored.
        asyncio.CancelledError: when interrupted at once.
    """
    interrupts = Interrupts(console)
    interrupts.install()
    async with _replicas(plan, console, clock, interrupts) as (fleet, guard):
        identity = await guarded(fleet.connect(_patience_s(plan.settings)), guard)
        guard.note_ready()
        store = await guarded(plan.open_store(identity), guard)
        await _ask_rows(plan, store, fleet, guard, interrupts, console, clock)
        if interrupts.count == 0 and store.count(RowState.PENDING):
            raise InputError("--dataset: has fewer rows than when it was first read")
        return SessionOutcome(store.count(RowState.PENDING) > 0, fleet.summary())


async def served_model(
    settings: CollectSettings, clock: Callable[[], float]
) -> ModelIdentity | None:
    """Ask what the given replicas serve; None when none of them answers within a moment.

    Raises:
        UsageError: see `Fleet.connect`.
    """
    urls = await resolve_endpoints(settings.replica)
    fleet = Fleet(_clients(settings, urls), settings.concurrency, clock, notify=lambda _: None)
    try:
        return await fleet.connect(_PROBE_PATIENCE_S)
    except ReplicasLostError:
        return None
    finally:
        await fleet.aclose()


async def _ask_rows(
    plan: SessionPlan,
    store: RowStore,
    fleet: Fleet,
    guard: Guard,
    interrupts: Interrupts,
    console: Console,
    clock: Callable[[], float],
) -> None:
    settings = plan.settings
    own = store.num_rows - store.count(RowState.ELSEWHERE)
    settled = own - store.count(RowState.PENDING)
    with ProgressReport(console, own, settled, clock) as progress:
        sink = RowSink(store, progress, clock)
        dispatcher = Dispatcher(
            fleet,
            _pending(plan.rows(), store),
            _asker(plan),
            sink,
            RetryPolicy(
                settings.max_retries,
                settings.replica_timeout,
                _MAX_AWAY if settings.replica else _MAX_AWAY_OF_OWN,
            ),
            clock,
            random.Random(),
        )
        interrupts.drain_first(dispatcher)
        syncing = asyncio.create_task(sink.keep_synced())
        try:
            await guarded(dispatcher.run(), guard, syncing)
            await sink.aclose()
        finally:
            syncing.cancel()
            # The store is closed next: nothing may still be writing to it.
            sink.abandon()


def _asker(plan: SessionPlan) -> Callable[[Replica, Row], Coroutine[Any, Any, PlanLatent]]:
    settings = plan.settings

    async def ask(replica: Replica, row: Row) -> PlanLatent:
        options: PlanOptions = {
            **settings.plan_options,
            "seed": row_seed(plan.seed, row.index),
        }
        return await replica.client.plan_latent(
            row.task,
            k=settings.k,
            task_id=row.task_id,
            request_id=f"row-{row.index}",
            **options,
        )

    return ask


def _pending(rows: Iterator[Row], store: RowStore) -> Iterator[Row]:
    for row in rows:
        if row.index >= store.num_rows:
            raise InputError("--dataset: has more rows than when it was first read")
        if store.is_pending(row.index):
            yield row


@asynccontextmanager
async def _replicas(
    plan: SessionPlan,
    console: Console,
    clock: Callable[[], float],
    interrupts: Interrupts,
) -> AsyncIterator[tuple[Fleet, Guard]]:
    settings, local = plan.settings, None
    if settings.replica:
        urls = await resolve_endpoints(settings.replica)
    else:
        specs = plan_local_replicas(settings, os.environ, plan.rank)
        urls = [spec.base_url for spec in specs]
        local = LocalReplicas(specs, console.say)
        console.say(f"starting {len(specs)} replica{'s' * (len(specs) > 1)} of the model")
    guard = Guard(plan.watch, local)
    fleet = Fleet(_clients(settings, urls), settings.concurrency, clock, console.say)
    if settings.replica:
        guard.add(
            discover(settings.replica, urls, lambda url: fleet.add(*_clients(settings, [url])))
        )
    try:
        yield fleet, guard
    finally:
        await fleet.aclose()
        if local is not None:
            await local.stop(at_once=interrupts.count > 1)
        await guard.aclose()


def _clients(settings: CollectSettings, urls: list[str]) -> list[AsyncClient]:
    # Own replicas are asked without a key. Retries are the dispatcher's, which may go elsewhere.
    key = settings.api_key if settings.replica else None
    return [
        AsyncClient(
            url,
            timeout_s=settings.timeout,
            max_retries=0,
            api_key=None if key is None else key.get_secret_value(),
            wire="safetensors",
        )
        for url in urls
    ]


def _patience_s(settings: CollectSettings) -> float:
    return settings.replica_timeout if settings.replica else _OWN_REPLICAS_PATIENCE_S
