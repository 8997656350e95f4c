"""The steps of `latentwire compress`: compare, compress every row, rewrite, install."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from latentwire_batch.compression.card import build_rewritten_card
from latentwire_batch.compression.columns import RewrittenColumns
from latentwire_batch.compression.command_settings import CompressSettings
from latentwire_batch.compression.compressing import Compressing
from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.compression.fit import check_source
from latentwire_batch.compression.outcome import STEP, Outcome, Step, write_failures
from latentwire_batch.compression.report import report_nothing_to_do, report_rewritten
from latentwire_batch.compression.rewriting import Rewriting, Written
from latentwire_batch.compression.row_log import CompressedRows
from latentwire_batch.compression.settings import chosen_compressors
from latentwire_batch.compression.source import SourceDataset
from latentwire_batch.compression.stored_form import StoredForm
from latentwire_batch.console import Console
from latentwire_batch.dataset.file_digests import files_json
from latentwire_batch.dataset.hub_layout import splits_json
from latentwire_batch.dataset.schema import FileSchema
from latentwire_batch.errors import InputError, StorageError, UsageError
from latentwire_batch.evaluation.progress import EvaluationProgress
from latentwire_batch.exit_status import ExitStatus
from latentwire_batch.output.discard import discard_all
from latentwire_batch.output.durable import read_json, write_json, write_text
from latentwire_batch.output.layout import (
    CARD_NAME,
    FAILURES_NAME,
    MANIFEST_NAME,
    OutputLayout,
)
from latentwire_batch.output.ownership import locked_output
from latentwire_batch.output.publish import finish_install, install
from latentwire_batch.output.split_data import split_data
from latentwire_batch.output.staging import emptied_staging
from latentwire_batch.tasks.inputs import SplitRows


def compress(settings: CompressSettings, console: Console) -> ExitStatus:
    """Rewrite one dataset, or resume rewriting it.

    Args:
        settings: given by the user.
        console: for notices and progress.

    Raises:
        UsageError: when the settings cannot be followed; nothing was written.
        BatchError: when the dataset could not be finished; compressed rows are kept.
    """
    layout = OutputLayout(settings.output_dir)
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError("--output-dir: is not a directory")
    work = _Work(settings, console, layout)
    with locked_output(layout):
        if settings.overwrite:
            discard_all(layout, work.splits)
        finish_install(layout)
        if work.is_finished():
            return report_nothing_to_do(console, layout)
        return work.run()


class _Work:
    """One rewriting: what is checked before the output is touched, and the passes."""

    def __init__(self, settings: CompressSettings, console: Console, layout: OutputLayout) -> None:
        self._settings = settings
        self._console = console
        self._layout = layout
        try:
            source = SourceDataset.of(settings.dataset)
        except InputError as error:
            raise InputError(f"DATASET: {error}") from error
        source.refuse_output(settings.output_dir)
        form = _form(settings, source)
        check_source(form, source.latent_facts, "the dataset's")
        encoder = form.encoder(source.width)
        facts = CompressorFacts.of(form)
        step = Step(source.num_rows, source.sha256, facts, settings.storage_dtype)
        self._outcome = Outcome(source, step, form, encoder)
        self._columns = RewrittenColumns.of(source, encoder, form)

    @property
    def splits(self) -> list[str]:
        """The names of the splits; empty for the classic layout."""
        return [split.name for split in self._outcome.source.splits]

    def is_finished(self) -> bool:
        """Whether the output holds the wanted dataset already.

        Raises:
            UsageError: when the output is another dataset, or is being made with other settings.
            StorageError: when it cannot be read.
        """
        stored, is_finished = read_json(self._layout.settings), False
        if stored is None:
            stored, is_finished = read_json(self._layout.manifest), True
        if stored is None:
            if self._layout.has_final_files() or split_data(self._layout.root, self.splits):
                raise UsageError(
                    "--output-dir: holds a dataset without a manifest; --overwrite replaces it"
                )
            return False
        if STEP not in stored:
            raise UsageError(
                "--output-dir: holds a dataset of another command; --overwrite replaces it"
            )
        try:
            found = Step.from_json(stored[STEP]).differences(self._outcome.step)
        except (LookupError, TypeError, ValueError) as error:
            raise StorageError("the output's settings are damaged") from error
        if found:
            raise UsageError(
                f"--output-dir: was made with other settings: {'; '.join(found)}. "
                "--overwrite starts from scratch; another --output-dir keeps both"
            )
        return is_finished

    def run(self) -> ExitStatus:
        """Compress the rows that are left, and write the dataset."""
        outcome, layout = self._outcome, self._layout
        if not layout.settings.exists():
            write_json(layout.settings, {STEP: outcome.step.to_json()})
        with CompressedRows(layout.log, outcome.source.num_rows) as rows:
            self._compress(rows)
            declaration = json.dumps(outcome.declaration(), ensure_ascii=False)
            schema = self._columns.schema(declaration)
            with emptied_staging(layout.staging) as staging:
                splits = _written_splits(outcome.source, rows)
                written = self._rewrite(staging, rows, schema, splits)
                write_failures(staging / FAILURES_NAME, outcome.source, rows.lost())
                files = files_json(staging, written.files)
            losses = Counter(row.code for row in rows.lost())
        manifest = outcome.manifest(written, splits_json(splits), files)
        write_text(
            staging / CARD_NAME, build_rewritten_card(manifest, schema, outcome.source.width)
        )
        write_json(staging / MANIFEST_NAME, manifest)
        install(layout)
        return report_rewritten(self._console, written, losses, self._settings.output_dir)

    def _compress(self, rows: CompressedRows) -> None:
        outcome, num_rows = self._outcome, self._outcome.source.num_rows
        if 0 < rows.num_settled < num_rows:
            self._console.say(f"resuming: {rows.num_settled} of {num_rows} rows are compressed")
        if rows.num_settled == num_rows:
            return
        num_left = num_rows - rows.num_settled
        with EvaluationProgress(self._console, num_left, "rows compressed") as progress:
            Compressing(outcome.source, outcome.encoder, rows, progress.advance).run()
        if rows.num_settled < num_rows:
            raise InputError("DATASET: has fewer rows than when it was first read")

    def _rewrite(
        self,
        staging: Path,
        rows: CompressedRows,
        schema: FileSchema,
        splits: Sequence[SplitRows],
    ) -> Written:
        num_rows, max_shard_bytes = self._outcome.source.num_rows, self._settings.max_shard_size
        with EvaluationProgress(self._console, num_rows, "rows written") as progress:
            rewriting = Rewriting(
                staging, self._columns, schema, max_shard_bytes, progress.advance, splits
            )
            return rewriting.run(rows)


def _written_splits(source: SourceDataset, rows: CompressedRows) -> list[SplitRows]:
    """Count the rows of each split that are not lost."""
    start, splits = 0, []
    for split in source.splits:
        end = start + split.num_rows
        splits.append(
            SplitRows(split.name, sum(not rows.is_lost(row) for row in range(start, end)))
        )
        start = end
    return splits


def _form(settings: CompressSettings, source: SourceDataset) -> StoredForm:
    if not settings.compressor and settings.storage_dtype is None:
        raise UsageError("--compressor: is required, unless --storage-dtype is given")
    wanted, stored = settings.storage_dtype, source.latent_dtype
    return StoredForm(
        chosen_compressors(settings, settings.k, source.schema.names),
        settings.replace,
        wanted or "float32",
        keeps_latent=not settings.replace and wanted in (None, stored),
    )
