"""The order of things in a collection: read, compare, ask, assemble, install."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.errors import BatchError, InputError, UsageError
from latentwire_batch.export import Assembly, Totals
from latentwire_batch.install import finish_install, install
from latentwire_batch.layout import (
    MANIFEST_NAME,
    OutputLayout,
    discard_all,
    locked_output,
    read_json,
    remove,
    write_json,
)
from latentwire_batch.manifest import build_manifest, settings_of
from latentwire_batch.previous import finished_indices, previous_rows
from latentwire_batch.reader import TaskSource
from latentwire_batch.record_log import RecordLog, storage_error
from latentwire_batch.rows import DataIdentity, identify
from latentwire_batch.run_settings import ModelIdentity, differences, request_settings
from latentwire_batch.seeds import draw_seed
from latentwire_batch.session import SessionOutcome, SessionPlan, run_session, served_model
from latentwire_batch.store import RowState, RowStore


class ExitStatus(IntEnum):
    """What the command says to the shell."""

    ALL_ROWS = 0
    FAILED = 1
    USAGE = 2
    SOME_ROWS_FAILED = 3
    INTERRUPTED = 130


def collect(settings: CollectSettings, console: Console, clock: Callable[[], float]) -> ExitStatus:
    """Make, or go on making, one dataset.

    Args:
        settings: of the run.
        console: for notices and progress.
        clock: monotonic seconds.

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
        status = _status_if_finished(settings, data, layout, console, clock)
        if status is not None:
            return status
    with locked_output(layout):
        if settings.overwrite:
            discard_all(layout)
        finish_install(layout)
        if not layout.settings.exists():
            status = _status_if_finished(settings, data, layout, console, clock)
            if status is not None:
                return status
        return Collection(settings, source, data, layout, console, clock).run()


class Collection:
    """One run on one output directory, whose lock is held.

    Args:
        settings: of the run.
        source: the input.
        data: what `identify` says of the input.
        layout: of the output.
        console: for notices and progress.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: CollectSettings,
        source: TaskSource,
        data: DataIdentity,
        layout: OutputLayout,
        console: Console,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._source = source
        self._data = data
        self._layout = layout
        self._console = console
        self._clock = clock
        self._manifest = read_json(layout.manifest)
        self._stored = read_json(layout.settings) or (
            settings_of(self._manifest) if self._manifest else None
        )
        self._store: RowStore | None = None

    def run(self) -> ExitStatus:
        """Ask for what is missing, then put the dataset together."""
        wanted = request_settings(self._settings, self._data, self._settings.seed)
        if self._stored is not None:
            _refuse_differences(self._stored, wanted)
            seed = self._stored["seed"]
        else:
            seed = draw_seed() if self._settings.seed is None else self._settings.seed
        try:
            if self._layout.settings.exists():
                self._store = self._open_store()
            if self._store is not None and not self._store.count(RowState.PENDING):
                return self._assemble(self._store, fleet={})
            outcome = self._ask({**wanted, "seed": seed})
            if outcome is None or outcome.was_interrupted:
                self._console.say("interrupted; the same command goes on from here")
                return ExitStatus.INTERRUPTED
            assert self._store is not None
            return self._assemble(self._store, outcome.fleet)
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
        )
        try:
            return asyncio.run(run_session(plan, self._console, self._clock))
        except (asyncio.CancelledError, KeyboardInterrupt):
            return None

    def _store_for(self, identity: ModelIdentity, wanted: dict[str, Any]) -> RowStore:
        run_settings = {**wanted, "model": identity.as_json()}
        if self._stored is not None:
            _refuse_differences(self._stored, run_settings)
            run_settings = self._stored
        self._stored = run_settings
        if self._store is None:
            write_json(self._layout.settings, run_settings)
            self._store = self._open_store()
        return self._store

    def _open_store(self) -> RowStore:
        store = RowStore(RecordLog(self._layout.log), self._data.num_rows)
        if self._manifest is not None:
            store.keep(finished_indices(self._manifest, self._layout))
        store.recover()
        if self._settings.retry_failed:
            store.reopen_failed()
        num_settled = store.num_rows - store.count(RowState.PENDING)
        if num_settled:
            self._console.say(f"{num_settled} of {store.num_rows} rows are done already")
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
        write_json(staging / MANIFEST_NAME, manifest)
        install(self._layout)
        return _report(self._console, totals.finished, totals.failed, "written")


def _survey(source: TaskSource) -> DataIdentity:
    """Read the input once, so that a bad row shows before anything is asked or written."""
    try:
        data = identify(source.rows())
    except InputError as error:
        raise InputError(f"--dataset: {error}") from error
    if not data.num_rows:
        raise InputError("--dataset: holds no rows")
    return data


def _status_if_finished(
    settings: CollectSettings,
    data: DataIdentity,
    layout: OutputLayout,
    console: Console,
    clock: Callable[[], float],
) -> ExitStatus | None:
    """Compare with what is there; None when there is something left to do."""
    manifest = read_json(layout.manifest)
    if manifest is None:
        if layout.has_final_files():
            raise UsageError(
                "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
            )
        return None
    counts = manifest["counts"]
    if settings.retry_failed and counts["failed"]:
        return None
    wanted = request_settings(settings, data, settings.seed)
    _refuse_differences(settings_of(manifest), wanted)
    if settings.replica:
        # A finished dataset needs no replica; but if one is there, it should be of that model.
        identity = asyncio.run(served_model(settings, clock))
        if identity is not None:
            _refuse_differences(settings_of(manifest), {"model": identity.as_json()})
    return _report(console, counts["finished"], counts["failed"], "there already")


def _refuse_differences(stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = differences(stored, wanted)
    if found:
        raise UsageError(
            f"--output-dir: was made with other settings: {'; '.join(found)}. "
            "--overwrite starts afresh"
        )


def _report(console: Console, num_finished: int, num_failed: int, verb: str) -> ExitStatus:
    if not num_failed:
        console.say(f"all {num_finished} rows are {verb}")
        return ExitStatus.ALL_ROWS
    console.say(
        f"{num_finished} rows are {verb}, {num_failed} failed (failures.jsonl); "
        "--retry-failed asks for those again"
    )
    return ExitStatus.SOME_ROWS_FAILED


def status_of(error: BatchError) -> ExitStatus:
    """Tell the exit status for an error."""
    return ExitStatus.USAGE if isinstance(error, UsageError) else ExitStatus.FAILED
