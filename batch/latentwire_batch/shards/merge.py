"""The steps of `latentwire merge`: find the shards, compare them, join their rows, install."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from latentwire_batch.assembly import Assembly, Totals
from latentwire_batch.console import Console
from latentwire_batch.dataset.card import build_card
from latentwire_batch.dataset.file_digests import stated_files
from latentwire_batch.dataset.hub_layout import splits_json, written_splits
from latentwire_batch.dataset.manifest import Counts, Manifest, declaration
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.errors import LocationError, StorageError, UsageError
from latentwire_batch.evaluation.progress import EvaluationProgress
from latentwire_batch.exit_status import (
    ExitStatus,
    Written,
    can_be_retried,
    report_nothing_to_do,
    report_written,
)
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.locations import Place, RemotePath
from latentwire_batch.locations.errors import output_error
from latentwire_batch.output.destination import Destination, destination_of
from latentwire_batch.output.discard import discard_partial
from latentwire_batch.output.durable import write_json, write_text
from latentwire_batch.output.layout import CARD_NAME, MANIFEST_NAME
from latentwire_batch.output.ownership import locked_output
from latentwire_batch.output.room import named_disk
from latentwire_batch.output.staging import emptied_staging
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.shards.columns import matrix_columns
from latentwire_batch.shards.finished import (
    FinishedShard,
    check_same_collection,
    digest_of,
    find_shards,
    identity,
)
from latentwire_batch.shards.folder import MERGED
from latentwire_batch.shards.merge_settings import MergeSettings
from latentwire_batch.shards.rows import interleaved, shard_rows
from latentwire_batch.tasks.inputs import SplitRows

_COPIES = "copies"
_UNFINISHED = "--output-dir: holds an unfinished collection; --overwrite replaces it"


def merge(settings: MergeSettings, console: Console) -> ExitStatus:
    """Join all shards of one collection.

    Args:
        settings: given by the user.
        console: for notices and progress.

    Raises:
        UsageError: when the shards are incomplete or do not belong together, or the output holds
            something else; nothing was written.
        BatchError: when the dataset could not be finished; the shards stay as they are.
    """
    shards = find_shards(settings.shards)
    check_same_collection(shards)
    _refuse_shard_as_output(settings.output_dir, shards)
    destination = destination_of(settings.output_dir, settings.work_dir, console.say)
    layout = destination.layout
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.flag}: is not a directory")
    merging = _Merging(settings, console, destination, shards)
    with locked_output(layout), destination.owned():
        if settings.overwrite:
            destination.discard(merging.split_names)
        elif layout.settings.exists():
            raise UsageError(_UNFINISHED)
        destination.finish_install()
        # A merging that was killed before that leaves nothing to build on.
        discard_partial(layout)
        status = merging.status_of_finished()
        if status is None:
            with named_disk(layout, merging.bytes_needed):
                return merging.run()
        destination.remove_left_over()
        return status


def _refuse_shard_as_output(output: Place, shards: Sequence[FinishedShard]) -> None:
    try:
        wanted = f"{identity(output)}/"
    except LocationError as error:
        raise output_error("cannot be opened", error) from error
    for shard in shards:
        if wanted.startswith(f"{identity(shard.folder)}/"):
            raise UsageError(f"--output-dir: is the folder of shard {shard.shard}, or inside of it")


class _Merging:
    """The joining of shards that belong together.

    Args:
        settings: given by the user.
        console: for notices and progress.
        destination: of the output.
        shards: all of one collection, in order.
    """

    def __init__(
        self,
        settings: MergeSettings,
        console: Console,
        destination: Destination,
        shards: Sequence[FinishedShard],
    ) -> None:
        self._settings = settings
        self._console = console
        self._destination = destination
        self._layout = destination.layout
        self._shards = shards
        self._readers = shard_rows(shards, self._layout.partial / _COPIES)
        self._sha256 = digest_of(shards)
        self._manifest = _joined(shards)

    def status_of_finished(self) -> ExitStatus | None:
        """Report an output that holds these shards already; None when there is no output.

        Raises:
            UsageError: when the output holds something else.
        """
        said = self._destination.manifest()
        if said is None:
            if self._destination.has_foreign_files(self.split_names):
                raise UsageError(
                    "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
                )
            claimed = self._destination.claimed()
            if claimed is not None and MERGED not in claimed:
                raise UsageError(_UNFINISHED)
            return None
        if said.get(MERGED) != self._merged:
            raise UsageError(
                "--output-dir: holds another dataset, or these shards as they were before they "
                "were collected again; --overwrite replaces it"
            )
        counts = self._manifest.counts
        return report_nothing_to_do(self._console, counts.finished, counts.failed, is_merged=True)

    @property
    def split_names(self) -> list[str]:
        """The names of the splits; empty for the classic layout."""
        return [split.name for split in self._manifest.settings.splits]

    @property
    def _merged(self) -> dict[str, Any]:
        return {"shards": len(self._shards), "sha256": self._sha256}

    def bytes_needed(self) -> int | None:
        """Return the disk space that the merge needs; None where shards do not state theirs."""
        needed = 0
        for shard in self._shards:
            with shard.reading_manifest():
                sizes = [digest.num_bytes for digest in stated_files(shard.said).values()]
            if not sizes:
                return None
            # Of a shard behind a URL, a copy of one file is here at a time.
            needed += sum(sizes) + (max(sizes) if isinstance(shard.folder, RemotePath) else 0)
        return needed

    def run(self) -> ExitStatus:
        """Write the dataset."""
        started_s = time.monotonic()
        merged = self._manifest
        for reader in self._readers:
            reader.check()
        # Shows before the rows are read that the place can be written to.
        self._destination.claim({MERGED: self._merged})
        self._announce_copies()
        matrices = matrix_columns(self._shards)
        totals = Totals.of_finished(merged.counts)
        declared = json.dumps(declaration(merged.settings, matrices), ensure_ascii=False)
        schema = DatasetSchema(merged.settings.columns, declared, matrices)
        with emptied_staging(self._layout.staging) as staging:
            failures, splits, files = self._assemble(staging, schema, totals)
        elapsed_s = merged.elapsed_s + time.monotonic() - started_s
        said = replace(merged, elapsed_s=elapsed_s).to_json(
            _fleet(self._shards), matrices, splits_json(splits), files
        )
        said[MERGED] = self._merged
        write_text(staging / CARD_NAME, build_card(said, schema))
        write_json(staging / MANIFEST_NAME, said)
        if digest_of(self._shards) != self._sha256:
            raise StorageError("a shard was collected again meanwhile; rerun the same command")
        self._destination.install()
        return self._report(failures)

    def _assemble(
        self, staging: Path, schema: DatasetSchema, totals: Totals
    ) -> tuple[Counter[str], Sequence[SplitRows], dict[str, Any]]:
        """Write the rows and failures; return the failures by code, the splits, and the files."""
        model, splits = self._manifest.settings.model, self._manifest.settings.splits
        assert model is not None
        counts = self._manifest.counts
        store = RowStore(RecordLog(self._layout.log), counts.rows)
        try:
            store.keep(np.ones(counts.rows, dtype=np.bool_))
            failed = np.zeros(counts.rows, dtype=np.bool_)
            failures: Counter[str] = Counter()
            for reader in self._readers:
                for row in reader.failed_rows():
                    store.add_failed(row)
                    failed[row.index] = True
                    failures[row.code] += 1
            written, max_bytes = (
                written_splits(splits, store.states()),
                self._settings.max_shard_size,
            )
            assembly = Assembly(staging, model.hidden_size, max_bytes, schema, written)
            with EvaluationProgress(self._console, counts.finished, "rows merged") as progress:
                rows = interleaved(self._shards, self._readers, schema, failed, progress.advance)
                assembly.run(store, rows, totals)
                # Reads the rest, of which there is none unless a shard holds too many rows.
                next(rows, None)
        finally:
            store.close()
        return failures, written, assembly.files_json()

    def _announce_copies(self) -> None:
        num_remote = sum(isinstance(shard.folder, RemotePath) for shard in self._shards)
        if num_remote:
            shards = "1 shard" if num_remote == 1 else f"{num_remote} shards"
            self._console.say(
                f"reading {shards} from behind URLs: a copy of one file of each is here at a time"
            )

    def _report(self, failures: Counter[str]) -> ExitStatus:
        counts, options = self._manifest.counts, self._manifest.settings.options
        status = report_written(
            self._console,
            Written(
                num_finished=counts.finished,
                failures=failures,
                num_cut=counts.finish_reasons.get("length", 0),
                max_new_tokens=options["max_new_tokens"],
                output_dir=self._settings.output_dir,
            ),
        )
        if any(map(can_be_retried, failures)):
            self._console.say(
                "--retry-failed is a flag of collect: run it for the shards, and merge them again "
                "with --overwrite"
            )
        return status


def _joined(shards: Sequence[FinishedShard]) -> Manifest:
    """Return what a run without shards would know of its output."""
    manifests = [shard.manifest for shard in shards]
    return Manifest(
        settings=replace(manifests[0].settings, shard=None),
        counts=reduce(_sum, [manifest.counts for manifest in manifests]),
        elapsed_s=sum(manifest.elapsed_s for manifest in manifests),
    )


def _sum(one: Counts, other: Counts) -> Counts:
    reasons = Counter(one.finish_reasons) + Counter(other.finish_reasons)
    sums = {
        name: getattr(one, name) + getattr(other, name)
        for name in Counts.__dataclass_fields__
        if name != "finish_reasons"
    }
    return Counts(**sums, finish_reasons=dict(reasons))


def _fleet(shards: Sequence[FinishedShard]) -> FleetSummary | None:
    """Return the replicas of all shards together; None when no shard names any.

    Shards may have had the same replicas, one after the other or at the same time, so their sum is
    no number of replicas. The largest number goes with the sum of their times.
    """
    fleets = [shard.fleet for shard in shards if shard.fleet is not None]
    if not fleets:
        return None
    devices = {device for fleet in fleets for device in fleet.devices}
    versions = {version for fleet in fleets for version in fleet.versions}
    count = max(fleet.count for fleet in fleets)
    return FleetSummary(count, tuple(sorted(devices)), tuple(sorted(versions)))
