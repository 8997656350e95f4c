"""The files of the hub layout, and which files a dataset of either layout gets.

`data/<split>-00000-of-00003.parquet`: the Hugging Face hub and `datasets.load_dataset` find the
splits of such a directory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from latentwire.split_files import DATA_DIRECTORY, split_file_name
from latentwire_batch.dataset.file_digests import FileDigest
from latentwire_batch.dataset.schema import FileSchema
from latentwire_batch.dataset.writers import BatchSink, HfDatasetSink, ParquetSink
from latentwire_batch.output.layout import DATA_NAME, HF_DATASET_NAME
from latentwire_batch.output.split_data import with_rows
from latentwire_batch.tasks.inputs import SplitRows
from latentwire_batch.tasks.results import RowState


def final_sinks(
    directory: Path,
    schema: FileSchema,
    max_file_bytes: int,
    splits: Sequence[SplitRows] = (),
) -> tuple[BatchSink, ...]:
    """Make the sinks that write a dataset's files into a directory.

    Args:
        directory: exists and is empty.
        schema: of the dataset.
        max_file_bytes: maximum bytes of rows in one file, before compression; `data.parquet` has no
            maximum.
        splits: the rows of each split that will be written, for the hub layout; empty: classic.
    """
    if splits:
        return (HubSink(directory / DATA_DIRECTORY, schema, max_file_bytes, splits),)
    return (
        ParquetSink(directory / DATA_NAME, schema),
        HfDatasetSink(directory / HF_DATASET_NAME, max_file_bytes, schema),
    )


def written_splits(splits: Sequence[SplitRows], states: Iterable[RowState]) -> list[SplitRows]:
    """Count the rows of each split that a dataset holds.

    Args:
        splits: with the rows of the input.
        states: of all rows of the input, in order.
    """
    remaining = iter(states)
    stored = (RowState.FINISHED, RowState.KEPT)
    return [
        SplitRows(
            split.name,
            sum(next(remaining) in stored for _ in range(split.num_rows)),
        )
        for split in splits
    ]


def splits_json(splits: Iterable[SplitRows]) -> Mapping[str, int]:
    """Return the splits as a manifest states them."""
    return {split.name: split.num_rows for split in splits}


@dataclass
class _OpenFile:
    sink: ParquetSink
    num_bytes: int = 0


class HubSink:
    """Writes the rows of several splits, which follow one another.

    A split without rows gets no file, because `load_dataset` fails with such a split; a dataset
    without rows has one file, of its first split.

    Args:
        directory: created by the sink.
        schema: of the dataset.
        max_file_bytes: maximum bytes of rows in one file, before compression, unless a single batch
            is larger.
        splits: the rows of each split that will be written, in order.
    """

    def __init__(
        self,
        directory: Path,
        schema: FileSchema,
        max_file_bytes: int,
        splits: Sequence[SplitRows],
    ) -> None:
        self._directory = directory
        self._schema = schema
        self._max_file_bytes = max_file_bytes
        names = with_rows(splits_json(splits))
        self._splits = deque(split for split in splits if split.name in names)
        self._closed: dict[str, list[FileDigest]] = {}
        directory.mkdir()
        self._begin_split()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append to the current file, or to a new one where that is full or its split ends.

        Raises:
            ValueError: when the splits have fewer rows.
        """
        start = 0
        while start < batch.num_rows:
            if not self._num_left:
                self._close_file()
                self._begin_split()
            size = min(self._num_left, batch.num_rows - start)
            self._append(batch if size == batch.num_rows else _copied(batch, start, size))
            self._num_left -= size
            start += size

    def close(self) -> None:
        """Close the last file, and give all files their final names.

        Raises:
            ValueError: when the splits have more rows.
        """
        if self._num_left or self._splits:
            raise ValueError("the splits have more rows than were written")
        self._close_file()
        for (split, index), (target, _) in self._final_files().items():
            self._path(split, index).rename(target)

    @property
    def files(self) -> Mapping[Path, FileDigest]:
        """The Parquet files of all splits."""
        return dict(self._final_files().values())

    def _final_files(self) -> dict[tuple[str, int], tuple[Path, FileDigest]]:
        """Return the name and the digest of each file, by its split and number."""
        return {
            (split, index): (self._directory / split_file_name(split, index, len(files)), digest)
            for split, files in self._closed.items()
            for index, digest in enumerate(files)
        }

    def _close_file(self) -> None:
        self._file.sink.close()
        self._closed[self._split] += self._file.sink.files.values()

    def _begin_split(self) -> None:
        if not self._splits:
            raise ValueError("there are more rows than the splits have")
        split = self._splits.popleft()
        self._split, self._num_left = split.name, split.num_rows
        self._closed[self._split] = []
        self._file = self._new_file()

    def _append(self, batch: pa.RecordBatch) -> None:
        file = self._file
        if file.num_bytes and file.num_bytes + batch.nbytes > self._max_file_bytes:
            self._close_file()
            file = self._file = self._new_file()
        file.sink.write(batch)
        file.num_bytes += batch.nbytes

    def _new_file(self) -> _OpenFile:
        index = len(self._closed[self._split])
        return _OpenFile(ParquetSink(self._path(self._split, index), self._schema))

    def _path(self, split: str, index: int) -> Path:
        # The final name holds the number of files, which is known only at the end.
        return self._directory / f"{split}-{index}.tmp"


def _copied(batch: pa.RecordBatch, start: int, size: int) -> pa.RecordBatch:
    """Return some rows of a batch as arrays of their own: writers take whole buffers."""
    return batch.take(pa.array(range(start, start + size)))
