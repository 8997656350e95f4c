"""The one reader of Arrow data: a Parquet file or a `Dataset.save_to_disk` directory, in batches.

The input and finished datasets are both read through it. It never imports `datasets`, and it holds
one batch of the chosen columns at a time. Knows nothing of tasks or latents.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.errors import InputError

STATE_NAME = "state.json"
_SPLITS_NAME = "dataset_dict.json"
_NOT_SAVED = "not a directory written by Dataset.save_to_disk"
_READ_BYTES = 1 << 20

# From a file's schema to the names of the columns to read; may raise InputError.
ChooseColumns = Callable[[pa.Schema], Sequence[str]]


def record_batches(path: Path, choose: ChooseColumns, max_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet file or a `save_to_disk` directory in order.

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
    # Page by page: other writers make row groups larger than the memory.
    with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
        yield from file.iter_batches(max_rows, columns=list(choose(file.schema_arrow)))


def is_split_directory(path: Path) -> bool:
    """Whether a directory holds several splits, each in a folder of its own."""
    return (path / _SPLITS_NAME).is_file()


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn what goes wrong while a file is read into an InputError that does not name its path."""
    try:
        yield
    except OSError as error:
        # Not `strerror`: libraries put the path into it.
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(f"cannot be read: {reason}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"cannot be decoded: {error}") from error


def _shards(directory: Path) -> list[Path]:
    if is_split_directory(directory):
        raise InputError(
            f"holds several splits; give the folder of one of: {_split_names(directory)}"
        )
    try:
        state = json.loads((directory / STATE_NAME).read_text())
        return [directory / shard["filename"] for shard in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(_NOT_SAVED) from error


def _split_names(directory: Path) -> str:
    try:
        return ", ".join(json.loads((directory / _SPLITS_NAME).read_text())["splits"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(_NOT_SAVED) from error


def _shard_batches(shard: Path, choose: ChooseColumns, max_rows: int) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(shard)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            # Columns first: converting a slice must not touch the latents next to the tasks.
            chosen = batch.select(list(choose(batch.schema)))
            for start in range(0, chosen.num_rows, max_rows):
                yield chosen.slice(start, max_rows)
