"""A rank that is not the first: does its share of the asking, and leaves the rest to rank 0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.dispatch.session import SessionPlan, run_session
from latentwire_batch.existing_output import refuse_differences
from latentwire_batch.exit_status import ExitStatus
from latentwire_batch.journal.open_store import open_store
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.layout import OutputLayout, read_json
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.ranks.rendezvous import Crew
from latentwire_batch.run_settings import ModelIdentity, request_settings
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.results import RowState
from latentwire_batch.tasks.rows import DataIdentity


def follow(
    settings: CollectSettings,
    source: TaskSource,
    data: DataIdentity,
    layout: OutputLayout,
    console: Console,
    clock: Callable[[], float],
    rank: Rank,
) -> ExitStatus:
    """Ask for this rank's rows, in a run that rank 0 announces.

    Raises:
        BatchError: when it cannot go on, or another rank is gone; what is done is kept.
    """
    crew = Crew(layout, rank)
    share = _Share(settings, source, data, layout, crew, rank)
    try:
        is_done = asyncio.run(share.ask(console, clock))
    except (asyncio.CancelledError, KeyboardInterrupt):
        is_done = False
    finally:
        share.close()
    if is_done:
        return ExitStatus.ALL_ROWS
    crew.check()
    console.say("interrupted; the same command goes on from here")
    return ExitStatus.INTERRUPTED


class _Interrupted(Exception):
    """Leaves the membership without being done."""


class _Share:
    """The rows of one rank."""

    def __init__(
        self,
        settings: CollectSettings,
        source: TaskSource,
        data: DataIdentity,
        layout: OutputLayout,
        crew: Crew,
        rank: Rank,
    ) -> None:
        self._settings = settings
        self._source = source
        self._data = data
        self._layout = layout
        self._crew = crew
        self._rank = rank
        self._store: RowStore | None = None

    async def ask(self, console: Console, clock: Callable[[], float]) -> bool:
        """Ask for all rows of the share; False when interrupted before its end."""
        seed = await self._crew.announced_seed()
        wanted = request_settings(self._settings, self._data, seed)
        try:
            with self._crew.membership():
                if self._is_nothing_left(wanted):
                    return True
                plan = SessionPlan(
                    settings=self._settings,
                    rows=self._source.rows,
                    seed=seed,
                    open_store=lambda identity: self._store_for(identity, wanted),
                    rank=self._rank,
                    watch=self._crew.watch,
                )
                outcome = await run_session(plan, console, clock)
                if outcome.was_interrupted:
                    raise _Interrupted
        except _Interrupted:
            return False
        return True

    def close(self) -> None:
        """Close the store, if it was opened."""
        if self._store is not None:
            self._store.close()

    def _is_nothing_left(self, wanted: dict[str, Any]) -> bool:
        """Tell, before a model is loaded for it, whether the share is done."""
        stored = read_json(self._layout.settings)
        if stored is None:
            return self._rank.index >= self._data.num_rows
        refuse_differences(stored, wanted)
        self._store = self._open()
        return self._store.count(RowState.PENDING) == 0

    async def _store_for(self, identity: ModelIdentity, wanted: dict[str, Any]) -> RowStore:
        stored = await self._crew.stored_settings()
        refuse_differences(stored, {**wanted, "model": identity.as_json()})
        self._store = self._store or self._open()
        return self._store

    def _open(self) -> RowStore:
        manifest = read_json(self._layout.manifest)
        return open_store(
            self._layout, self._data.num_rows, self._rank, manifest, self._settings.retry_failed
        )
