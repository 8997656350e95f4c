"""The one reader of Arrow data: Parquet, Arrow, a `Dataset.save_to_disk` directory, in batches.

The input and finished datasets are both read through it. It never imports `datasets`, and it holds
one batch of the chosen columns at a time. Knows nothing of tasks or latents.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.errors import InputError, reason_of
from latentwire_batch.locations import Place, RemotePath

STATE_NAME = "state.json"
_SPLITS_NAME = "dataset_dict.json"
NOT_SAVED = "not a directory written by Dataset.save_to_disk"
_READ_BYTES = 1 << 20
# One request of an object store takes as long as some MiB.
_REMOTE_READ_BYTES = 8 << 20
# Of a mapped file, at most so many bytes are yielded together and kept in memory.
_PIECE_BYTES = 2 << 20
_NO_FORMAT = "is neither a Parquet nor an Arrow file"
_PARQUET_MAGIC = b"PAR1"
_ARROW_FILE_MAGIC = b"ARROW1"
# Marks the first message of a stream.
_ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"

# From a file's schema to the names of the columns to read; may raise InputError.
ChooseColumns = Callable[[pa.Schema], Sequence[str]]


def record_batches(path: Place, choose: ChooseColumns, max_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet or Arrow file or a `save_to_disk` directory in order.

    Args:
        path: a file, or a directory.
        choose: names the columns to read.
        max_rows: largest number of rows in a batch. The batches of a directory are views of its
            memory-mapped files.

    Raises:
        InputError: when a directory was not written by `save_to_disk`, or holds several splits.
        OSError, pa.ArrowException: when a file cannot be read; see `input_errors`.
    """
    if path.is_dir():
        for shard in _shards(path):
            yield from _shard_batches(shard, choose, max_rows)
        return
    if not _is_parquet(path):
        yield from _shard_batches(path, choose, max_rows)
        return
    # Page by page: other writers make row groups larger than the memory.
    with _opened_parquet(path) as file:
        yield from file.iter_batches(max_rows, columns=list(choose(file.schema_arrow)))


def files_of_rows(path: Place) -> list[Place]:
    """Return the files of what `record_batches` reads, in the order of the rows; raises like it."""
    return _shards(path) if path.is_dir() else [path]


def arrow_schema(path: Place) -> pa.Schema:
    """Return the schema of what `record_batches` reads, with its metadata; raises like it."""
    if path.is_dir():
        path = _shards(path)[0]
    if _is_parquet(path):
        with _opened_parquet(path) as file:
            return file.schema_arrow
    with _opened_arrow(path) as file, _opened_ipc(file.source) as reader:
        return reader.schema


class BatchSource(Protocol):
    """The batches of a dataset by number: row groups of Parquet, record batches of Arrow."""

    @property
    def num_rows(self) -> Sequence[int]:
        """Rows of each batch."""
        ...

    def read(self, number: int) -> pa.RecordBatch:
        """Return one batch; raises like `record_batches`."""
        ...


def open_batches(path: Place, columns: Sequence[str]) -> BatchSource:
    """Open what `record_batches` reads for reading in any order.

    Args:
        path: a file, or a directory.
        columns: names of the columns to read.

    Raises:
        InputError, OSError, pa.ArrowException: like `record_batches`.
    """
    if path.is_dir() or not _is_parquet(path):
        if isinstance(path, RemotePath):
            raise InputError(
                "holds Arrow files, whose rows cannot be read by index behind a URL; give Parquet "
                "files, or a copy here"
            )
        return _MappedBatches(_shards(path) if path.is_dir() else [path], columns)
    return _RowGroups(path, columns)


class _MappedBatches:
    """Record batches of memory-mapped Arrow files: views, which the system loads when needed."""

    def __init__(self, shards: Sequence[Place], columns: Sequence[str]) -> None:
        self._batches: list[pa.RecordBatch] = []
        for shard in shards:
            # Its batches keep the mapping open.
            source = pa.memory_map(str(shard))
            with _opened_ipc(source) as reader:
                self._batches += [batch.select(list(columns)) for batch in _batches(reader)]

    @property
    def num_rows(self) -> list[int]:
        return [batch.num_rows for batch in self._batches]

    def read(self, number: int) -> pa.RecordBatch:
        return self._batches[number]


class _RowGroups:
    """Row groups of a Parquet file; the one that was read last is kept."""

    def __init__(self, path: Place, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = list(columns)
        with _opened_parquet(path) as file:
            metadata = file.metadata
        self.num_rows = [
            metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)
        ]
        self._last: tuple[int, pa.RecordBatch] | None = None

    def read(self, number: int) -> pa.RecordBatch:
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        with _opened_parquet(self._path, pre_buffer=isinstance(self._path, RemotePath)) as file:
            table = file.read_row_group(number, columns=self._columns)
        batch = pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())
        self._last = number, batch
        return batch


class JoinedBatches:
    """The batches of several files, one after another.

    Args:
        sources: of the files.
    """

    def __init__(self, sources: Sequence[BatchSource]) -> None:
        self._places = [
            (source, number) for source in sources for number in range(len(source.num_rows))
        ]
        self.num_rows = [source.num_rows[number] for source, number in self._places]

    def read(self, number: int) -> pa.RecordBatch:
        """Return one batch."""
        source, place = self._places[number]
        return source.read(place)


def is_split_directory(path: Place) -> bool:
    """Whether a directory holds several splits, each in a folder of its own."""
    return (path / _SPLITS_NAME).is_file()


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what goes wrong while a file is read into an InputError that does not name its path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read: {reason_of(error)}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot be decoded: {error}") from error


def split_names(directory: Place) -> list[str]:
    """Return the names of the splits, which are also the names of their folders.

    Raises:
        InputError: when the list of splits cannot be read.
    """
    try:
        text = (directory / _SPLITS_NAME).read_text(encoding="utf-8")
        names = json.loads(text)["splits"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(NOT_SAVED) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(NOT_SAVED)
    return names


@contextmanager
def _opened_parquet(path: Place, pre_buffer: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, of which only the wanted parts are read."""
    if isinstance(path, Path):
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=pre_buffer) as file:
            yield file
        return
    with (
        path.open_raw() as raw,
        pq.ParquetFile(raw, buffer_size=_REMOTE_READ_BYTES, pre_buffer=pre_buffer) as file,
    ):
        yield file


class _OpenArrow:
    """An Arrow file or stream that is open.

    Args:
        source: reads it.
        mapping: its memory, where it is mapped.
    """

    def __init__(self, source: pa.NativeFile, mapping: mmap.mmap | None = None) -> None:
        self.source = source
        self._mapping = mapping
        self._num_unreleased = 0

    def release(self, num_bytes: int) -> None:
        """Note that rows were read; now and then, give the pages that hold them back.

        The system would take them back when it needs them, but counts them as this process's until
        then. Views of them stay valid: a page that is read again comes from the page cache.
        """
        self._num_unreleased += num_bytes
        if self._mapping is not None and self._num_unreleased >= _PIECE_BYTES:
            self._mapping.madvise(mmap.MADV_DONTNEED)
            self._num_unreleased = 0


@contextmanager
def _opened_arrow(path: Place) -> Iterator[_OpenArrow]:
    """Open an Arrow file or stream; one of this machine is mapped into memory."""
    if not isinstance(path, Path):
        with path.open("rb") as raw, pa.PythonFile(raw, "r") as file:
            yield _OpenArrow(file)
        return
    if not path.stat().st_size:
        # Which cannot be mapped.
        raise InputError(_NO_FORMAT)
    with path.open("rb") as opened:
        # Closed when its last view is dropped.
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    with pa.BufferReader(pa.py_buffer(mapping)) as reader:
        yield _OpenArrow(reader, mapping)


def _is_parquet(path: Place) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _shards(directory: Place) -> list[Place]:
    if is_split_directory(directory):
        names = ", ".join(split_names(directory))
        raise InputError(f"holds several splits; give the folder of one of: {names}")
    try:
        state = json.loads((directory / STATE_NAME).read_text(encoding="utf-8"))
        return [directory / shard["filename"] for shard in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(NOT_SAVED) from error


def _shard_batches(shard: Place, choose: ChooseColumns, max_rows: int) -> Iterator[pa.RecordBatch]:
    with _opened_arrow(shard) as file, _opened_ipc(file.source) as batches:
        for batch in _batches(batches):
            # Columns first: converting a slice must not touch the latents next to the tasks.
            chosen = batch.select(list(choose(batch.schema)))
            row_bytes = max(1, chosen.nbytes // max(1, chosen.num_rows))
            num_rows = max(1, min(max_rows, _PIECE_BYTES // row_bytes))
            for start in range(0, chosen.num_rows, num_rows):
                yield chosen.slice(start, num_rows)
                file.release(num_rows * row_bytes)


def _opened_ipc(
    source: pa.NativeFile,
) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
    source.seek(0)
    if not is_file and source.read(len(_ARROW_STREAM_MAGIC)) != _ARROW_STREAM_MAGIC:
        raise InputError(_NO_FORMAT)
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)


def _batches(
    reader: pa.RecordBatchStreamReader | pa.RecordBatchFileReader,
) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchStreamReader):
        yield from reader
        return
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
