"""One rank's share of the rows: their store, and the session that fills it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from itertools import takewhile
from types import TracebackType
from typing import Any, Self

from latentwire.split_files import DATA_DIRECTORY
from latentwire_batch.compression.fit import check_served
from latentwire_batch.compression.stored_form import LatentEncoder
from latentwire_batch.dataset.manifest import read_manifest
from latentwire_batch.dispatch.interrupts import run_interruptible
from latentwire_batch.dispatch.session import (
    Helpers,
    RowRequest,
    SessionPlan,
    run_session,
)
from latentwire_batch.errors import StorageError
from latentwire_batch.journal.open_store import open_store, set_unusable_aside
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.output.layout import HF_DATASET_NAME
from latentwire_batch.output.room import bytes_in
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.ray.session import RaySessionPlan, run_ray_session
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.select import select_source
from latentwire_batch.run import Run
from latentwire_batch.run_settings import RunSettings
from latentwire_batch.shards.shard import ALL_ROWS
from latentwire_batch.tasks.results import FinishedRow, RowState
from latentwire_batch.tasks.rows import Row

# Of the classic layout: Arrow files and a Parquet file, each as large as the rows.
_NUM_FORMS = 2
# Receives the settings with the served model, before the first row is sent. Raises UsageError when
# the output was made with other settings.
Agree = Callable[[RunSettings], Awaitable[None]]


class Share:
    """The rows of one rank. Used as a context, which closes the store at its end.

    Args:
        run: of this process.
        wanted: settings of the run, seed included.
        agree: compares them with those of the output.
        watch: see `SessionPlan`.
        helpers: see `SessionPlan`.
    """

    def __init__(
        self,
        run: Run,
        wanted: RunSettings,
        agree: Agree,
        watch: Callable[[], Coroutine[Any, Any, None]] | None,
        helpers: Helpers | None = None,
    ) -> None:
        self._run = run
        self._wanted = wanted
        self._agree = agree
        self._watch = watch
        self._helpers = helpers
        self._store: RowStore | None = None
        self._segments: Segments | None = None
        # Of the open store: rows that cannot be sent.
        self._num_set_aside = 0
        self._encoder: LatentEncoder | None = None

    def __enter__(self) -> Self:
        """Return the share itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        self._close()

    @property
    def store(self) -> RowStore:
        """The store, opened when it is first needed."""
        if self._store is None:
            self._store = self._open(self._run.rank, self._run.settings.retry_failed)
            if self._run.rank.index == 0:
                self._report_resumed(self._store)
        return self._store

    def has_pending_rows(self) -> bool:
        """Whether a row of this share, or of its helpers, still has to be sent."""
        num_others = 0 if self._helpers is None else self.store.count(RowState.ELSEWHERE)
        return self.store.count(RowState.PENDING) + num_others > 0

    def bytes_needed(self) -> int | None:
        """Estimate the disk space that the run needs where it works; None before the first row.

        Raises:
            StorageError: when the log cannot be read.
        """
        run, store = self._run, self._store
        done = None if store is None else store.finished_index()
        if store is None or done is None or not len(done):
            return None
        states = (RowState.FINISHED, RowState.PENDING, RowState.ELSEWHERE)
        num_rows = sum(store.count(state) for state in states)
        num_copies = 1 if run.splits else _NUM_FORMS
        kept = bytes_in(run.layout.finished / (DATA_DIRECTORY if run.splits else HF_DATASET_NAME))
        # Where replicas put rows elsewhere, only the final files are here.
        has_log = self._segments is None or run.settings.on != "ray"
        rows_bytes = done.num_bytes * num_rows // len(done)
        return rows_bytes * (num_copies + has_log) + kept * (num_copies + run.layout.is_remote)

    def plan_rows(self) -> FleetSummary:
        """Plan the pending rows here or on a Ray cluster.

        Raises:
            RunInterrupted: when a signal ended it.
        """
        if self._run.settings.on == "ray":
            return self._collect_on_ray()
        return run_interruptible(self.collect())

    async def collect(self) -> FleetSummary:
        """Send the pending rows in a session; see `run_session`."""
        run, settings, seeds = self._run, self._run.settings, self._wanted.seeds
        assert seeds is not None
        request = RowRequest(self._wanted.k, self._wanted.options, seeds)
        plan = SessionPlan(
            rows=run.source.rows,
            request=request,
            source=select_source(settings, os.environ, run.rank, run.console.say),
            open_store=self._store_for,
            concurrency=settings.concurrency,
            max_retries=settings.max_retries,
            watch=self._watch,
            prepare=None if run.form.is_plain else self._prepare,
            slots_of=run.rank.slots_of,
            helpers=self._helpers,
            progress=run.progress,
        )
        return await run_session(plan, run.console)

    def _collect_on_ray(self) -> FleetSummary:
        """Let a Ray cluster plan the pending rows, and take over the logs of its replicas."""
        seeds = self._wanted.seeds
        assert seeds is not None
        request = RowRequest(self._wanted.k, self._wanted.options, seeds)
        num_usable = self._run.num_rows - self._run.num_unusable
        num_rows = num_usable if self._store is None else self._store.count(RowState.PENDING)
        plan = RaySessionPlan(self._run, self._rows_left(), num_rows, request, self._store_for)
        fleet = run_ray_session(plan)
        if self.take_over(self._run.rank).count(RowState.PENDING):
            raise StorageError(
                "rows that a replica wrote are missing from --output-dir; rerun the same command "
                "to redo them"
            )
        return fleet

    def _rows_left(self) -> Iterator[Row]:
        """Yield the rows to send, as far as is known now: the store is open only for a rerun."""
        if self._store is not None:
            pending = self._store.pending()
        else:
            pending = (self._run.shard or ALL_ROWS).mask(self._run.data.num_rows)
        # An input that has grown meanwhile has rows that belong to no run.
        rows = takewhile(lambda row: row.index < pending.size, self._run.source.rows())
        return (row for row in rows if pending[row.index])

    def take_over(self, rank: Rank) -> RowStore:
        """Open the logs again, as another rank sees them.

        Args:
            rank: whose view to take.
        """
        self._close()
        self._store = self._open(rank, reopens_failed=False)
        return self._store

    async def _store_for(self, identity: ModelIdentity) -> RowStore:
        check_served(self._run.form, identity)
        self._encoder = self._run.form.encoder(identity.hidden_size)
        await self._agree(replace(self._wanted, model=identity))
        # Reading a large journal takes seconds: the loop must still see signals and dead replicas.
        return await asyncio.to_thread(lambda: self.store)

    def _prepare(self, finished: FinishedRow) -> FinishedRow:
        """Fill in what is stored of a latent; raises NotStorableError. Runs on worker threads."""
        assert self._encoder is not None
        matrices = self._encoder.encode(finished.hidden_state)
        return replace(finished, matrices=tuple(matrices.values()))

    def _open(self, rank: Rank, reopens_failed: bool) -> RowStore:
        layout = self._run.layout
        manifest = read_manifest(layout.manifest)
        num_rows, shard = self._run.data.num_rows, self._run.shard or ALL_ROWS
        if self._segments is None and (parts := self._run.destination.parts()) is not None:
            self._segments = Segments(parts)
        store = open_store(layout, num_rows, rank, manifest, reopens_failed, shard, self._segments)
        if self._run.num_unusable:
            self._num_set_aside = set_unusable_aside(store, self._run.source.unusable_rows())
        return store

    def _report_resumed(self, store: RowStore) -> None:
        num_open = store.count(RowState.PENDING) + store.count(RowState.ELSEWHERE)
        num_rows, num_aside = self._run.num_rows, self._num_set_aside
        num_done = num_rows - num_open - num_aside
        if num_open and num_done:
            verb = "is" if num_aside == 1 else "are"
            aside = f", and {num_aside} {verb} set aside" if num_aside else ""
            self._run.console.say(f"resuming: {num_done} of {num_rows} rows are done{aside}")

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
