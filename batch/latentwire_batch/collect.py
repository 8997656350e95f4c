"""The steps of a collection: read the input, compare the output, collect, assemble, install."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentwire import PlanOptions
from latentwire.split_files import DATA_DIRECTORY
from latentwire_batch.assembly import Assembly, Totals
from latentwire_batch.config import CollectSettings
from latentwire_batch.console import Console
from latentwire_batch.dataset.card import build_card
from latentwire_batch.dataset.hub_layout import splits_json, written_splits
from latentwire_batch.dataset.manifest import Manifest, declaration, read_manifest
from latentwire_batch.dataset.previous import previous_rows
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.dispatch.interrupts import run_interruptible
from latentwire_batch.dispatch.seeds import Seeds, draw_seed, today
from latentwire_batch.dispatch.session import SessionProgress
from latentwire_batch.errors import RivalError, RunInterrupted, StorageError, UsageError
from latentwire_batch.existing_output import finished_counts, refuse_differences
from latentwire_batch.exit_status import (
    FINISHED,
    ExitStatus,
    Written,
    report_interrupted,
    report_nothing_to_do,
    report_written,
)
from latentwire_batch.follower import follow
from latentwire_batch.hub.push import hub_target
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.destination import Destination
from latentwire_batch.output.durable import write_json, write_text
from latentwire_batch.output.layout import CARD_NAME, MANIFEST_NAME
from latentwire_batch.output.left_over import clear_left_over
from latentwire_batch.output.ownership import locked_output
from latentwire_batch.output.room import named_disk
from latentwire_batch.output.staging import emptied_staging
from latentwire_batch.ranks.rank import ALONE, Rank
from latentwire_batch.ranks.rendezvous import Rendezvous, refuse_other_launches
from latentwire_batch.ranks.share import Share
from latentwire_batch.ray.final_file import FinalForm
from latentwire_batch.ray.joining import forget_join, join_on_cluster, joins_on_cluster
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.run import Run
from latentwire_batch.run_settings import RunSettings, read_settings
from latentwire_batch.shards.folder import agree_on_date, refuse_mixture, seed_of
from latentwire_batch.shards.shard import Shard
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.opening import opened_tasks
from latentwire_batch.tasks.results import RowState
from latentwire_batch.workers.processes import Workers


def collect(
    settings: CollectSettings,
    console: Console,
    rank: Rank = ALONE,
    shard: Shard | None = None,
    workers: Workers | None = None,
    progress: Callable[[int], SessionProgress] | None = None,
) -> ExitStatus:
    """Make one dataset, or resume making it.

    Args:
        settings: given by the user.
        console: for notices and progress.
        rank: of this process; all but the first only collect their share of the rows.
        shard: to collect, into a folder of its own in the output directory; None: all rows.
        workers: the other ranks, to be started; None: there are none, or a launcher starts them.
        progress: see `SessionPlan`.

    Raises:
        UsageError: when the settings cannot be followed; nothing was written.
        BatchError: when the dataset could not be finished; finished rows are kept.
    """
    replaces = settings.overwrite or settings.retry_failed
    refuse_mixture(settings.output_dir, shard, replaces)
    if shard is not None:
        settings = settings.model_copy(update={"output_dir": settings.output_dir / shard.folder})
    if settings.on == "ray" and rank.count > 1:
        raise UsageError("--on ray: cannot run under torchrun or srun; start one process")
    try:
        notify = console.say if rank.index == 0 else _ignore
        target = hub_target(settings, shard)
        with opened_tasks(settings, notify) as tasks:
            run = Run.of(settings, console, rank, tasks, shard)
            status = _collect(replace(run, progress=progress), workers)
        if target is not None and rank.index == 0 and status in FINISHED:
            target.push(Path(str(settings.output_dir)), console.say)
        return status
    except RunInterrupted:
        # The first process tells it for its workers.
        is_told = rank.is_worker and rank.index > 0
        return ExitStatus.INTERRUPTED if is_told else report_interrupted(console)


def _ignore(_line: str) -> None:
    """Leave the notice to the first rank."""


def _collect(run: Run, workers: Workers | None) -> ExitStatus:
    layout, destination, overwrite = run.layout, run.destination, run.settings.overwrite
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.flag}: is not a directory")
    if run.splits and not layout.is_remote and (layout.root / DATA_DIRECTORY).is_file():
        raise UsageError("--output-dir: its data is not a directory")
    if not overwrite and not layout.partial.exists():
        status = _status_of_finished(run, clear_left_over)
        if status is not None:
            return status
    if run.rank.index > 0:
        return follow(run)
    with locked_output(layout), destination.owned():
        refuse_other_launches(layout)
        if overwrite:
            destination.discard(run.split_names)
        if destination.has_rival():
            return _status_of_rival(run)
        destination.finish_install()
        if not layout.settings.exists():
            status = _status_of_finished(run, lambda there: there.remove_left_over())
            if status is not None:
                return status
            destination.fetch_previous()
        return Collection(run, workers).collect()


def _status_of_rival(run: Run) -> ExitStatus:
    """Leave an output to another machine's run that has finished the same dataset there."""
    try:
        status = _status_of_finished(run, lambda there: there.yield_to_rival())
    except UsageError as error:
        raise RivalError from error
    if status is None:
        raise RivalError
    return status


def _status_of_finished(run: Run, clear: Callable[[Destination], None]) -> ExitStatus | None:
    """Report a finished output; return None when rows are still missing.

    Args:
        run: of this process.
        clear: removes what another run left next to the finished output.
    """
    counts = finished_counts(run)
    if counts is None:
        return None
    if run.rank.index == 0:
        clear(run.destination)
    return report_nothing_to_do(run.console, counts.finished, counts.failed, run.num_unusable)


class Collection:
    """The first rank's work on an output directory, whose lock it holds.

    Args:
        run: of this process.
        workers: see `collect`.
    """

    def __init__(self, run: Run, workers: Workers | None = None) -> None:
        self._run = run
        self._workers = workers
        self._layout = run.layout
        self._rendezvous = Rendezvous(run.layout, run.rank)
        self._manifest = read_manifest(run.layout.manifest)
        self._stored = read_settings(run.layout.settings)
        if self._stored is None and self._manifest is not None:
            self._stored = self._manifest.settings
        claimed = None if self._stored is not None else run.destination.claimed()
        if claimed is not None:
            self._stored = RunSettings.from_json(claimed)
        self._is_claimed = claimed is not None

    def collect(self) -> ExitStatus:
        """Collect the missing rows, then put the dataset together."""
        wanted = self._run.wanted_settings(self._run.settings.seed)
        if self._stored is not None:
            refuse_differences(self._stored, wanted)
            seeds = self._stored.seeds
        else:
            seeds = _new_seeds(self._run, wanted)
        assert seeds is not None
        wanted, workers = wanted.with_seeds(seeds), self._workers
        if workers is not None:
            with (
                self._rendezvous.announced(seeds),
                workers,
                Share(self._run, wanted, self._agree, workers.watch, workers) as share,
            ):
                return self._collect(share)
        watch = self._rendezvous.watch if self._run.rank.count > 1 else None
        with (
            self._rendezvous.announced(seeds),
            self._rendezvous.interruptible(),
            Share(self._run, wanted, self._agree, watch) as share,
        ):
            return self._collect(share)

    def _collect(self, share: Share) -> ExitStatus:
        with named_disk(self._layout, share.bytes_needed):
            return self._plan_and_assemble(share)

    def _plan_and_assemble(self, share: Share) -> ExitStatus:
        fleet = None
        is_begun = self._layout.settings.exists() or self._is_claimed
        if not is_begun or share.has_pending_rows():
            fleet = share.plan_rows()
        if self._run.rank.count > 1:
            self._take_over(share)
        return self._assemble(share.store, fleet)

    async def _agree(self, wanted: RunSettings) -> None:
        """Compare the settings with the output's, or store them as the output's."""
        if self._stored is None:
            self._stored = wanted
        refuse_differences(self._stored, wanted)
        if not self._layout.settings.exists():
            await asyncio.to_thread(self._run.destination.claim, self._stored.to_json())
            write_json(self._layout.settings, self._stored.to_json())

    def _take_over(self, share: Share) -> None:
        """Wait until the other ranks are done, and take their rows."""
        started_s = time.monotonic()
        workers = self._workers
        run_interruptible((self._rendezvous.others_done if workers is None else workers.all_done)())
        share.store.add_elapsed(time.monotonic() - started_s)
        if share.take_over(ALONE).count(RowState.PENDING):
            raise StorageError("rows of another rank are missing; rerun the same command to resume")

    def _assemble(self, store: RowStore, fleet: FleetSummary | None) -> ExitStatus:
        assert self._stored is not None
        assert self._stored.model is not None
        started_s = time.monotonic()
        width = self._stored.model.hidden_size
        totals, earlier_s = Totals(), 0.0
        if self._manifest is not None:
            totals = Totals.of_finished(self._manifest.counts)
            earlier_s = self._manifest.elapsed_s
        matrices = self._run.form.encoder(width).columns
        declared = json.dumps(declaration(self._stored, matrices), ensure_ascii=False)
        schema = DatasetSchema(self._stored.columns, declared, matrices)
        splits = written_splits(self._run.splits, store.states())
        form = FinalForm(schema, width, self._run.settings.max_shard_size)
        if joins_on_cluster(self._run, store):
            files = join_on_cluster(self._run, store, form, totals)
        else:
            files = self._write_files(store, form, splits, totals)
        elapsed_s = earlier_s + store.elapsed_s + time.monotonic() - started_s
        counts = totals.counts(self._run.num_rows)
        described = Manifest(self._stored, counts, elapsed_s)
        manifest = described.to_json(fleet, matrices, splits_json(splits), files)
        write_text(self._layout.staging / CARD_NAME, build_card(manifest, schema))
        write_json(self._layout.staging / MANIFEST_NAME, manifest)
        self._run.destination.install()
        written = Written(
            num_finished=totals.finished,
            failures=Counter(failed.code for failed in store.failed_rows()),
            num_cut=totals.finish_reasons["length"],
            max_new_tokens=self._stored.options["max_new_tokens"],
            output_dir=self._run.settings.output_dir,
            shard=self._run.shard,
        )
        return report_written(self._run.console, written)

    def _write_files(
        self, store: RowStore, form: FinalForm, splits: Sequence[SplitRows], totals: Totals
    ) -> dict[str, Any]:
        """Write all final files but the card and the manifest in this process; return digests."""
        schema = form.schema
        forget_join(self._layout)
        with emptied_staging(self._layout.staging) as staging:
            assembly = Assembly(staging, form.width, form.max_bytes, schema, splits)
            previous = previous_rows(self._layout, schema.matrices, schema.extras)
            assembly.run(store, previous, totals)
            return assembly.files_json()


def _new_seeds(run: Run, wanted: RunSettings) -> Seeds:
    """Choose what a run was not given. All shards of one collection choose the same."""
    seed = wanted.seed
    if seed is None:
        seed = draw_seed() if run.shard is None else seed_of(run.data)
    return Seeds(seed, date=_date_of(run, wanted.options))


def _date_of(run: Run, options: PlanOptions) -> str | None:
    """Return the date that the model's own chat template is to write; None if it is not used."""
    if options["chat_template"] != "auto":
        return None
    if run.shard is None or "date" in options:
        return options.get("date") or today()
    return agree_on_date(run.settings.output_dir.parent, run.shard, run.data, today())
