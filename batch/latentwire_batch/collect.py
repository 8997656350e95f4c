"""The order of things in a collection: read, compare, ask, assemble, install."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from latentwire_batch.assembly import Assembly, Totals
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.dataset.card import build_card
from latentwire_batch.dataset.manifest import build_manifest, settings_of
from latentwire_batch.dataset.previous import previous_rows
from latentwire_batch.dispatch.seeds import draw_seed
from latentwire_batch.dispatch.session import SessionOutcome, SessionPlan, run_session
from latentwire_batch.errors import InputError, StorageError, UsageError
from latentwire_batch.existing_output import finished_counts, refuse_differences
from latentwire_batch.exit_status import ExitStatus, report
from latentwire_batch.follower import follow
from latentwire_batch.journal.open_store import open_store
from latentwire_batch.journal.record_log import storage_error
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.layout import (
    CARD_NAME,
    MANIFEST_NAME,
    OutputLayout,
    discard_all,
    locked_output,
    read_json,
    remove,
    write_json,
    write_text,
)
from latentwire_batch.output.publish import finish_install, install
from latentwire_batch.ranks.rank import ALONE, Rank
from latentwire_batch.ranks.rendezvous import Crew, refuse_strangers
from latentwire_batch.run_settings import ModelIdentity, request_settings
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.results import RowState
from latentwire_batch.tasks.rows import DataIdentity, identify


def collect(
    settings: CollectSettings,
    console: Console,
    clock: Callable[[], float],
    rank: Rank = ALONE,
) -> ExitStatus:
    """Make, or go on making, one dataset.

    Args:
        settings: of the run.
        console: for notices and progress.
        clock: monotonic seconds.
        rank: of this process; one that is not the first only does its share of the asking.

    Raises:
        UsageError: when it cannot be done as asked; nothing was written.
        BatchError: when it could not be finished; what is done is kept.
    """
    source = TaskSource(settings.dataset, settings.row_fields, settings.limit)
    data = _survey(source)
    layout = OutputLayout(settings.output_dir)
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError("--output-dir: is not a directory")
    if not settings.overwrite and not layout.partial.exists():
        counts = finished_counts(settings, data, layout, clock)
        if counts is not None:
            return report(console, counts["finished"], counts["failed"], "there already")
    if rank.index > 0:
        return follow(settings, source, data, layout, console, clock, rank)
    with locked_output(layout):
        refuse_strangers(layout)
        if settings.overwrite:
            discard_all(layout)
        finish_install(layout)
        if not layout.settings.exists():
            counts = finished_counts(settings, data, layout, clock)
            if counts is not None:
                return report(console, counts["finished"], counts["failed"], "there already")
        return Collection(settings, source, data, layout, console, clock, rank).run()


class Collection:
    """One run on one output directory, whose lock is held.

    Args:
        settings: of the run.
        source: the input.
        data: what `identify` says of the input.
        layout: of the output.
        console: for notices and progress.
        clock: monotonic seconds.
        rank: of this process, the first of its run.
    """

    def __init__(
        self,
        settings: CollectSettings,
        source: TaskSource,
        data: DataIdentity,
        layout: OutputLayout,
        console: Console,
        clock: Callable[[], float],
        rank: Rank,
    ) -> None:
        self._settings = settings
        self._source = source
        self._data = data
        self._layout = layout
        self._console = console
        self._clock = clock
        self._rank = rank
        self._crew = Crew(layout, rank)
        self._manifest = read_json(layout.manifest)
        self._stored = read_json(layout.settings) or (
            settings_of(self._manifest) if self._manifest else None
        )
        self._store: RowStore | None = None

    def run(self) -> ExitStatus:
        """Ask for what is missing, then put the dataset together."""
        wanted = request_settings(self._settings, self._data, self._settings.seed)
        if self._stored is not None:
            refuse_differences(self._stored, wanted)
            seed = self._stored["seed"]
        else:
            seed = draw_seed() if self._settings.seed is None else self._settings.seed
        with self._crew.announced(seed):
            return self._run({**wanted, "seed": seed})

    def _run(self, wanted: dict[str, Any]) -> ExitStatus:
        fleet: dict[str, Any] = {}
        try:
            if self._layout.settings.exists():
                self._store = self._open_store(self._rank, self._settings.retry_failed)
            if self._store is None or self._store.count(RowState.PENDING):
                outcome = self._ask(wanted)
                if outcome is None or outcome.was_interrupted:
                    return self._interrupted()
                fleet = outcome.fleet
            if self._rank.count > 1 and not self._wait_for_others():
                return self._interrupted()
            assert self._store is not None
            return self._assemble(self._store, fleet)
        finally:
            if self._store is not None:
                self._store.close()

    def _ask(self, wanted: dict[str, Any]) -> SessionOutcome | None:
        """Run a session; None when it was ended at once."""
        plan = SessionPlan(
            settings=self._settings,
            rows=self._source.rows,
            seed=wanted["seed"],
            open_store=lambda identity: self._store_for(identity, wanted),
            rank=self._rank,
            watch=self._crew.watch if self._rank.count > 1 else None,
        )
        try:
            return asyncio.run(run_session(plan, self._console, self._clock))
        except (asyncio.CancelledError, KeyboardInterrupt):
            return None

    def _interrupted(self) -> ExitStatus:
        # A launcher ends all processes when one has died: say which one did.
        self._crew.check()
        self._console.say("interrupted; the same command goes on from here")
        return ExitStatus.INTERRUPTED

    def _wait_for_others(self) -> bool:
        """Take over the other ranks' rows when they are done; False when interrupted before."""
        assert self._store is not None
        started_s = self._clock()
        try:
            asyncio.run(self._crew.others_done())
        except (asyncio.CancelledError, KeyboardInterrupt):
            return False
        self._store.add_elapsed(self._clock() - started_s)
        self._store.close()
        self._store = None
        self._store = self._open_store(ALONE, reopens_failed=False)
        if self._store.count(RowState.PENDING):
            raise StorageError("rows of another rank are missing; the same command goes on")
        return True

    async def _store_for(self, identity: ModelIdentity, wanted: dict[str, Any]) -> RowStore:
        run_settings = {**wanted, "model": identity.as_json()}
        if self._stored is not None:
            refuse_differences(self._stored, run_settings)
            run_settings = self._stored
        self._stored = run_settings
        if self._store is None:
            write_json(self._layout.settings, run_settings)
            self._store = self._open_store(self._rank, self._settings.retry_failed)
        return self._store

    def _open_store(self, rank: Rank, reopens_failed: bool) -> RowStore:
        store = open_store(self._layout, self._data.num_rows, rank, self._manifest, reopens_failed)
        num_open = store.count(RowState.PENDING) + store.count(RowState.ELSEWHERE)
        if 0 < num_open < store.num_rows:
            self._console.say(f"{store.num_rows - num_open} of {store.num_rows} rows are done")
        return store

    def _assemble(self, store: RowStore, fleet: dict[str, Any]) -> ExitStatus:
        assert self._stored is not None
        started_s = self._clock()
        width = self._stored["model"]["hidden_size"]
        totals, earlier_s = Totals(), 0.0
        if self._manifest is not None:
            totals = Totals.of_finished(self._manifest["counts"])
            earlier_s = self._manifest["elapsed_s"]
        staging = self._layout.staging
        try:
            remove(staging)
            staging.mkdir()
            Assembly(staging, width, self._settings.max_shard_size).run(
                store, previous_rows(self._layout, width), totals
            )
        except OSError as error:
            # Half of the final files would only take the room that is missing.
            with suppress(OSError):
                remove(staging)
            raise storage_error("cannot be written", error) from error
        elapsed_s = earlier_s + store.elapsed_s + self._clock() - started_s
        manifest = build_manifest(self._stored, totals, elapsed_s, fleet)
        write_text(staging / CARD_NAME, build_card(manifest))
        write_json(staging / MANIFEST_NAME, manifest)
        install(self._layout)
        return report(self._console, totals.finished, totals.failed, "written")


def _survey(source: TaskSource) -> DataIdentity:
    """Read the input once, so that a bad row shows before anything is asked or written."""
    try:
        data = identify(source.rows())
    except InputError as error:
        raise InputError(f"--dataset: {error}") from error
    if not data.num_rows:
        raise InputError("--dataset: holds no rows")
    return data
