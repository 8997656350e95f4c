"""The steps of `latentwire merge`: find the shards, compare them, join their rows, install."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire_batch.assembly import Assembly, Totals
from latentwire_batch.console import Console
from latentwire_batch.dataset.card import build_card
from latentwire_batch.dataset.hub_layout import splits_json, written_splits
from latentwire_batch.dataset.manifest import Counts, Manifest, declaration
from latentwire_batch.dataset.previous import previous_rows
from latentwire_batch.dataset.reader import EncodedRow
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.errors import StorageError, UsageError
from latentwire_batch.evaluation.progress import EvaluationProgress
from latentwire_batch.exit_status import (
    ExitStatus,
    Written,
    report_nothing_to_do,
    report_written,
)
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.discard import discard_all, discard_partial
from latentwire_batch.output.durable import read_json, write_json, write_text
from latentwire_batch.output.layout import CARD_NAME, MANIFEST_NAME, OutputLayout
from latentwire_batch.output.ownership import locked_output
from latentwire_batch.output.publish import finish_install, install
from latentwire_batch.output.staging import emptied_staging
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.shards.columns import matrix_columns
from latentwire_batch.shards.finished import (
    FinishedShard,
    check_same_collection,
    digest_of,
    find_shards,
)
from latentwire_batch.shards.folder import MERGED
from latentwire_batch.shards.merge_settings import MergeSettings
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.results import FailedRow

# Besides the shards' files: libraries, the output, the terminal.
_OTHER_FILES = 256


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
    layout = OutputLayout(settings.output_dir)
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError("--output-dir: is not a directory")
    shards = find_shards(settings.shards)
    check_same_collection(shards)
    _refuse_shard_as_output(layout, shards)
    merging = _Merging(settings, console, layout, shards)
    with locked_output(layout):
        if layout.settings.exists() and not settings.overwrite:
            raise UsageError(
                "--output-dir: holds an unfinished collection; --overwrite replaces it"
            )
        if settings.overwrite:
            discard_all(layout)
        finish_install(layout)
        # A merging that was killed leaves nothing to build on.
        discard_partial(layout)
        status = merging.status_of_finished()
        return merging.run() if status is None else status


def _refuse_shard_as_output(layout: OutputLayout, shards: Sequence[FinishedShard]) -> None:
    output = layout.root.resolve()
    for shard in shards:
        folder = shard.layout.root.resolve()
        if output == folder or folder in output.parents:
            raise UsageError(f"--output-dir: is the folder of shard {shard.shard}, or inside of it")


class _Merging:
    """The joining of shards that belong together.

    Args:
        settings: given by the user.
        console: for notices and progress.
        layout: of the output.
        shards: all of one collection, in order.
    """

    def __init__(
        self,
        settings: MergeSettings,
        console: Console,
        layout: OutputLayout,
        shards: Sequence[FinishedShard],
    ) -> None:
        self._settings = settings
        self._console = console
        self._layout = layout
        self._shards = shards
        self._sha256 = digest_of(shards)
        self._manifest = _joined(shards)

    def status_of_finished(self) -> ExitStatus | None:
        """Report an output that holds these shards already; None when there is no output.

        Raises:
            UsageError: when the output holds something else.
        """
        said = read_json(self._layout.manifest)
        if said is None:
            if self._layout.has_final_files():
                raise UsageError(
                    "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
                )
            return None
        if said.get(MERGED) != self._merged:
            raise UsageError(
                "--output-dir: holds another dataset, or these shards as they were before they "
                "were collected again; --overwrite replaces it"
            )
        counts = self._manifest.counts
        return report_nothing_to_do(self._console, counts.finished, counts.failed, verb="merged")

    @property
    def _merged(self) -> dict[str, Any]:
        return {"shards": len(self._shards), "sha256": self._sha256}

    def run(self) -> ExitStatus:
        """Write the dataset."""
        started_s = time.monotonic()
        layout, merged = self._layout, self._manifest
        matrices = matrix_columns(self._shards)
        totals = Totals.of_finished(merged.counts)
        declared = json.dumps(declaration(merged.settings, matrices), ensure_ascii=False)
        schema = DatasetSchema(merged.settings.columns, declared, matrices)
        with emptied_staging(layout.staging) as staging:
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
        install(layout)
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
            for shard in self._shards:
                for row in _failed_rows(shard):
                    store.add_failed(row)
                    failed[row.index] = True
                    failures[row.code] += 1
            written, max_bytes = (
                written_splits(splits, store.states()),
                self._settings.max_shard_size,
            )
            assembly = Assembly(staging, model.hidden_size, max_bytes, schema, written)
            with EvaluationProgress(self._console, counts.finished, "rows merged") as progress:
                rows = _interleaved(self._shards, schema, failed, progress.advance)
                assembly.run(store, rows, totals)
                # Reads the rest, of which there is none unless a shard holds too many rows.
                next(rows, None)
        finally:
            store.close()
        return failures, written, assembly.files_json()

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
        if failures:
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
    """Return the replicas of all shards together; None when no shard names any."""
    fleets = [shard.fleet for shard in shards if shard.fleet is not None]
    if not fleets:
        return None
    devices = {device for fleet in fleets for device in fleet.devices}
    versions = {version for fleet in fleets for version in fleet.versions}
    count = sum(fleet.count for fleet in fleets)
    return FleetSummary(count, tuple(sorted(devices)), tuple(sorted(versions)))


def _failed_rows(shard: FinishedShard) -> Iterator[FailedRow]:
    """Yield the rows that failed in a shard.

    Raises:
        StorageError: when the list is damaged, or does not fit the manifest.
    """
    num_failed, num_rows = shard.manifest.counts.failed, shard.manifest.settings.data.num_rows
    if not num_failed:
        return
    seen: set[int] = set()
    try:
        with shard.layout.failures.open(encoding="utf-8") as file:
            for line in file:
                said = json.loads(line)
                row = FailedRow(int(said["row"]), said["task_id"], said["code"], said["message"])
                if not (0 <= row.index < num_rows and shard.shard.holds(row.index)):
                    raise ValueError("a row of another shard")
                seen.add(row.index)
                yield row
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StorageError(f"shard {shard.shard}: its failures.jsonl cannot be read") from error
    if len(seen) != num_failed:
        raise StorageError(
            f"shard {shard.shard}: its failures.jsonl lists {len(seen)} rows, but {num_failed} "
            "failed"
        )


def _interleaved(
    shards: Sequence[FinishedShard],
    schema: DatasetSchema,
    failed: npt.NDArray[np.bool_],
    advance: Callable[[], None],
) -> Iterator[EncodedRow]:
    """Yield the rows of all shards in input order, as they are stored.

    Raises:
        StorageError: when a shard cannot be read, or holds another number of rows.
    """
    _allow_open_files(len(shards))
    readers = [previous_rows(shard.layout, schema.matrices, schema.extras) for shard in shards]
    for index in np.flatnonzero(~failed):
        number = int(index) % len(shards)
        row = _next(shards[number], readers[number])
        if row is None:
            raise StorageError(f"shard {shards[number].shard}: holds fewer rows than it says")
        advance()
        yield row
    for shard, reader in zip(shards, readers, strict=True):
        if _next(shard, reader) is not None:
            raise StorageError(f"shard {shard.shard}: holds more rows than it says")


def _next(shard: FinishedShard, reader: Iterator[EncodedRow]) -> EncodedRow | None:
    try:
        return next(reader, None)
    except StorageError as error:
        raise StorageError(f"shard {shard.shard}: {error}") from error


def _allow_open_files(num_shards: int) -> None:
    """Raise this process's limit: each shard has a file open, and systems often allow 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_shards + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
