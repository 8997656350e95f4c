"""Assembly: streams the finished rows, in input order, into the final files.

Memory is bounded by a few record batches, whatever the number of rows.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from latentwire_batch.dataset.file_digests import files_json, merged_files
from latentwire_batch.dataset.hub_layout import final_sinks
from latentwire_batch.dataset.manifest import Counts
from latentwire_batch.dataset.matrices import Shape
from latentwire_batch.dataset.reader import EncodedRow
from latentwire_batch.dataset.schema import (
    CLASSIC_SCHEMA,
    DEFAULT_BATCH_BYTES,
    LATENT_COLUMN,
    BatchBuilder,
    DatasetSchema,
)
from latentwire_batch.dataset.writers import BatchSink
from latentwire_batch.journal.row_records import StoredRow
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.output.layout import FAILURES_NAME
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.results import FailedRow, RowState, RowText

# Copies a row's matrices into arrays, in the order of its record.
ReadInto = Callable[[Sequence[npt.NDArray[Any]]], None]


@dataclass
class Totals:
    """Running sums over the rows of a dataset.

    Attributes:
        finished: rows with a latent.
        failed: rows without one.
        prompt_tokens: over the finished rows.
        completion_tokens: over the finished rows.
        latent_steps: stored rows of latents.
        finish_reasons: finished rows by reason.
    """

    finished: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latent_steps: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of_finished(cls, counts: Counts) -> Totals:
        """Start with the finished rows of an earlier output."""
        return cls(
            finished=counts.finished,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            latent_steps=counts.latent_steps,
            finish_reasons=Counter(counts.finish_reasons),
        )

    def add(self, other: Totals) -> None:
        """Add the finished rows of another part of the dataset."""
        self.finished += other.finished
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.latent_steps += other.latent_steps
        self.finish_reasons += other.finish_reasons

    def counts(self, num_rows: int) -> Counts:
        """Return the sums for a manifest.

        Args:
            num_rows: rows of the input.
        """
        return Counts(
            rows=num_rows,
            finished=self.finished,
            failed=self.failed,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            latent_steps=self.latent_steps,
            finish_reasons=dict(self.finish_reasons),
        )


@dataclass
class _Filling:
    """A builder, and the jobs that still read its last batch."""

    builder: BatchBuilder
    jobs: list[Future[None]] = field(default_factory=list)


class RowBatches:
    """Makes batches of rows, and writes one to all sinks while the next is filled.

    Leaving its context ends its threads, also when a write has failed.

    Args:
        sinks: receive the batches.
        schema: of the dataset.
        width: hidden size of the model, the width of latents in logs that do not state it.
        max_bytes: maximum size of a batch, unless a single row is larger.
    """

    def __init__(
        self, sinks: Sequence[BatchSink], schema: DatasetSchema, width: int, max_bytes: int
    ) -> None:
        self._sinks = sinks
        self._schema = schema
        self._width = width
        self._stores_latents = any(m.name == LATENT_COLUMN for m in schema.matrices)
        # One is filled while the batch of the other is written.
        self._builders = deque(
            _Filling(BatchBuilder(min(DEFAULT_BATCH_BYTES, max_bytes), schema)) for _ in range(2)
        )
        # Encoding Parquet takes as long as reading the rows and writing Arrow together, so each
        # sink has its own thread, which also keeps its batches in order.
        self._writers = [ThreadPoolExecutor(1, thread_name_prefix="assembly") for _ in sinks]

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads."""
        for writer in self._writers:
            writer.shutdown(cancel_futures=True)

    def add_kept(self, row: EncodedRow) -> None:
        """Add a row of an earlier dataset."""
        matrices = [row.matrices[matrix.name] for matrix in self._schema.matrices]
        known = [encoded for encoded in matrices if encoded is not None]
        shapes = [Shape(len(encoded.values), encoded.width) for encoded in known]
        places = self._room_for(row.text, shapes).add(row.text, shapes, row.extras)
        for place, encoded in zip(places, known, strict=True):
            place.fill(encoded)

    def add_stored(self, row: StoredRow, read_into: ReadInto, totals: Totals) -> None:
        """Add a row of a log.

        Args:
            row: without its matrices.
            read_into: copies the matrices to their places.
            totals: to which the row is added.
        """
        sizes = [(row.num_steps, self._width)] if row.shapes is None else row.shapes
        shapes = [Shape(num_rows, width) for num_rows, width in sizes]
        extras = {name: getattr(row, name) for name in self._schema.extras}
        places = self._room_for(row.text, shapes).add(row.text, shapes, extras)
        read_into([array for place in places for array in place.arrays])
        totals.finished += 1
        totals.prompt_tokens += row.prompt_tokens
        totals.completion_tokens += row.completion_tokens
        totals.latent_steps += row.num_steps if self._stores_latents else 0
        totals.finish_reasons[row.finish_reason] += 1

    def close(self) -> None:
        """Write what is left, and close the sinks."""
        self._flush()
        # The last batches first: a file must not be closed before its batches are written.
        for job in chain(*(filling.jobs for filling in self._builders)):
            job.result()
        for job in self._submit(lambda sink: sink.close()):
            job.result()

    def _room_for(self, text: RowText, shapes: Sequence[Shape]) -> BatchBuilder:
        if not self._builders[0].builder.has_room(text, shapes):
            self._flush()
        return self._builders[0].builder

    def _flush(self) -> None:
        filling = self._builders[0]
        if filling.builder.is_empty:
            return
        batch = filling.builder.finish()
        filling.jobs = self._submit(lambda sink: sink.write(batch))
        self._builders.rotate()
        # The next batch reuses its buffer, so both sinks must be done with it.
        for job in self._builders[0].jobs:
            job.result()

    def _submit(self, work: Callable[[BatchSink], None]) -> list[Future[None]]:
        return [
            writer.submit(work, sink)
            for writer, sink in zip(self._writers, self._sinks, strict=True)
        ]


class Assembly:
    """Writes one dataset's final files into a directory.

    Args:
        directory: exists and is empty.
        width: see `RowBatches`.
        max_shard_bytes: see `final_sinks`.
        schema: of the dataset.
        splits: the rows of each split, for the hub layout; empty: the classic one.
    """

    def __init__(
        self,
        directory: Path,
        width: int,
        max_shard_bytes: int,
        schema: DatasetSchema = CLASSIC_SCHEMA,
        splits: Sequence[SplitRows] = (),
    ) -> None:
        self._directory = directory
        self._sinks = final_sinks(directory, schema, max_shard_bytes, splits)
        self._batches = RowBatches(self._sinks, schema, width, max_shard_bytes)

    def files_json(self) -> dict[str, Any]:
        """Return what the manifest says about the files, once all rows are written.

        Raises:
            OSError: when the list of failures cannot be read.
        """
        return files_json(self._directory, merged_files(sink.files for sink in self._sinks))

    def run(self, store: RowStore, previous: Iterator[EncodedRow], totals: Totals) -> None:
        """Write all rows.

        Args:
            store: of this run; none of its rows is pending.
            previous: the rows that the store marks as kept, in order.
            totals: of the kept rows; those of the store are added.

        Raises:
            StorageError: when a row cannot be read back.
            OSError: when a file cannot be written.
        """
        store.will_read(RowState.FINISHED)
        with self._batches as batches:
            for index, state in enumerate(store.states()):
                if state == RowState.FINISHED:
                    read_into = partial(store.read_matrices_into, index)
                    batches.add_stored(store.read(index), read_into, totals)
                elif state == RowState.KEPT:
                    batches.add_kept(next(previous))
            batches.close()
        totals.failed = write_failures(self._directory, store.failed_rows())


def write_failures(directory: Path, failures: Iterator[FailedRow]) -> int:
    """Write the list of rows without a latent, if there are any; return their number."""
    first = next(failures, None)
    if first is None:
        return 0
    num_failed = 0
    with (directory / FAILURES_NAME).open("w", encoding="utf-8") as file:
        for failed in chain([first], failures):
            file.write(json.dumps(_failure_line(failed), ensure_ascii=False) + "\n")
            num_failed += 1
        file.flush()
        os.fsync(file.fileno())
    return num_failed


def _failure_line(failed: FailedRow) -> dict[str, Any]:
    return {
        "row": failed.index,
        "task_id": failed.task_id,
        "code": failed.code,
        "message": failed.message,
    }
