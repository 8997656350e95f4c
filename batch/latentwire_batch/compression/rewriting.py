"""Second pass over a dataset: its columns and the compressed rows, streamed into the final files.

Memory is bounded by a few record batches, whatever the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentwire_batch.compression.columns import RewrittenColumns
from latentwire_batch.compression.row_log import CompressedRows
from latentwire_batch.dataset.file_digests import FileDigest, merged_files
from latentwire_batch.dataset.hub_layout import final_sinks
from latentwire_batch.dataset.schema import DEFAULT_BATCH_BYTES, LATENT_COLUMN, FileSchema
from latentwire_batch.dataset.writers import BatchSink
from latentwire_batch.errors import InputError
from latentwire_batch.tasks.arrow_files import input_errors
from latentwire_batch.tasks.inputs import SplitRows

_SLICE_ROWS = 16
_SUMMED = ("prompt_tokens", "completion_tokens")


@dataclass
class Lost:
    """What the rows that are left out held, as far as the dataset says it.

    Attributes:
        rows: their number.
        sums: of `prompt_tokens` and `completion_tokens`.
        finish_reasons: their numbers by reason.
    """

    rows: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the rows of a batch."""
        self.rows += batch.num_rows
        for name in _SUMMED:
            if name in batch.schema.names:
                self.sums[name] += sum(value or 0 for value in batch.column(name).to_pylist())
        if "finish_reason" in batch.schema.names:
            self.finish_reasons.update(map(str, batch.column("finish_reason").to_pylist()))


@dataclass
class Written:
    """What was written.

    Attributes:
        rows: of the new dataset.
        latent_rows: of all latents, whether they are stored or not.
        lost: the rows that are left out.
        files: that hold the rows.
    """

    rows: int = 0
    latent_rows: int = 0
    lost: Lost = field(default_factory=Lost)
    files: dict[Path, FileDigest] = field(default_factory=dict)


class Rewriting:
    """Writes the final files of one dataset into a directory.

    Args:
        directory: exists and is empty.
        columns: of the new dataset.
        schema: of its files.
        max_shard_bytes: see `final_sinks`.
        advance: called for every row of the source.
        splits: the rows of each split, for the hub layout; empty: the classic one.
    """

    def __init__(
        self,
        directory: Path,
        columns: RewrittenColumns,
        schema: FileSchema,
        max_shard_bytes: int,
        advance: Callable[[], None],
        splits: Sequence[SplitRows] = (),
    ) -> None:
        self._columns = columns
        self._schema = schema
        self._advance = advance
        self._max_batch_bytes = min(DEFAULT_BATCH_BYTES, max_shard_bytes)
        self._sinks = final_sinks(directory, schema, max_shard_bytes, splits)
        # Encoding Parquet takes longer than all the rest, so each sink has its own thread.
        self._writers = [ThreadPoolExecutor(1, thread_name_prefix="rewrite") for _ in self._sinks]
        self._jobs: list[Future[None]] = []
        self._parts: list[pa.RecordBatch] = []
        self._num_bytes = 0

    def run(self, rows: CompressedRows) -> Written:
        """Write all rows.

        Args:
            rows: all of the dataset's, settled.

        Raises:
            InputError: when the dataset cannot be read.
            StorageError: when a compressed row cannot be read back.
            OSError: when a file cannot be written.
        """
        written = Written()
        try:
            start = 0
            for batch in self._batches():
                self._add(batch, rows, start, written)
                start += batch.num_rows
            self._flush()
            self._wait()
            self._submit(lambda sink: sink.close())
            self._wait()
            written.files = merged_files(sink.files for sink in self._sinks)
        finally:
            for writer in self._writers:
                writer.shutdown(cancel_futures=True)
        return written

    def _batches(self) -> Iterator[pa.RecordBatch]:
        source = self._columns.source
        with input_errors():
            batches = source.files.batches(lambda schema: schema.names, _SLICE_ROWS)
            while (batch := next(batches, None)) is not None:
                yield batch

    def _add(
        self, batch: pa.RecordBatch, rows: CompressedRows, start: int, written: Written
    ) -> None:
        places = range(batch.num_rows)
        if start + len(places) > self._columns.source.num_rows:
            raise InputError("DATASET: has more rows than when it was first read")
        lost = [place for place in places if rows.is_lost(start + place)]
        if lost:
            written.lost.add(batch.take(pa.array(lost)))
        kept = [place for place in places if not rows.is_lost(start + place)]
        if kept:
            # A copy of these rows alone: a slice would keep all that its file has mapped.
            taken = batch.take(pa.array(kept))
            matrices = [rows.read(start + place) for place in kept]
            part = self._assembled(taken, matrices)
            fits = part.nbytes <= self._max_batch_bytes
            for piece in [part] if fits else [part.slice(row, 1) for row in range(len(kept))]:
                self._append(piece)
            written.rows += len(kept)
            lengths = taken.column(LATENT_COLUMN).value_lengths().to_pylist()
            written.latent_rows += sum(length or 0 for length in lengths)
        for _ in places:
            self._advance()

    def _assembled(
        self, taken: pa.RecordBatch, matrices: Sequence[Mapping[str, Any]]
    ) -> pa.RecordBatch:
        made = self._columns.arrays(matrices)
        arrays = [
            made[name] if name in made else taken.column(name) for name in self._columns.order
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema.arrow)

    def _append(self, part: pa.RecordBatch) -> None:
        if self._parts and self._num_bytes + part.nbytes > self._max_batch_bytes:
            self._flush()
        self._parts.append(part)
        self._num_bytes += part.nbytes

    def _flush(self) -> None:
        if not self._parts:
            return
        table = pa.Table.from_batches(self._parts).combine_chunks()
        self._parts, self._num_bytes = [], 0
        # One batch is written while the next one is filled.
        self._wait()
        for batch in table.to_batches():
            self._submit(partial(_write, batch))

    def _submit(self, work: Callable[[BatchSink], None]) -> None:
        self._jobs += [
            writer.submit(work, sink)
            for writer, sink in zip(self._writers, self._sinks, strict=True)
        ]

    def _wait(self) -> None:
        for job in self._jobs:
            job.result()
        self._jobs = []


def _write(batch: pa.RecordBatch, sink: BatchSink) -> None:
    sink.write(batch)
