"""Input formats, each as a stream of rows in bounded memory.

JSON (a list of objects), JSON Lines, Parquet, and directories written by `Dataset.save_to_disk`.
The format is told by content, not by name. Knows nothing of replicas or of the output.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.rows import Row, RowFields, extract_row

_PARQUET_MAGIC = b"PAR1"
_PARQUET_BATCH_ROWS = 256
_CHUNK_CHARS = 1 << 16
# One object of a JSON list is held whole; a broken one must not pull the rest of the file in.
_MAX_OBJECT_CHARS = 1 << 28
# No token but a string is longer than this: an error that far from the window's end is no cut.
_MAX_TOKEN_CHARS = 1 << 13


@dataclass(frozen=True)
class TaskSource:
    """An input that can be read from the start any number of times.

    Attributes:
        path: a file or a `save_to_disk` directory.
        fields: which fields make a row.
        limit: how many rows to read at most; None: all.
    """

    path: Path
    fields: RowFields
    limit: int | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows in input order.

        Raises:
            InputError: when the input cannot be read or a row cannot be used, naming which.
        """
        records = islice(_records(self.path, self.fields), self.limit)
        try:
            for index, record in enumerate(records):
                yield extract_row(record, index, self.fields)
        except OSError as error:
            # Not `strerror`: libraries put the path into it.
            reason = os.strerror(error.errno) if error.errno else type(error).__name__
            raise InputError(f"cannot be read: {reason}") from error
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"cannot be decoded: {error}") from error


def _records(path: Path, fields: RowFields) -> Iterator[Any]:
    if not path.exists():
        raise InputError("no such file or directory")
    if path.is_dir():
        return _saved_dataset_records(path, fields)
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(_PARQUET_MAGIC):
        return _parquet_records(path, fields)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _json_list_records(path)
    return _json_lines_records(path)


def _json_lines_records(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"line {number} is not JSON ({error.msg} at column {error.colno}); "
                    "a file holds either a list of objects or one object per line"
                ) from error
            except (RecursionError, ValueError) as error:
                raise InputError(f"line {number}: {_over_limit(error)}") from error
            yield record


def _over_limit(error: Exception) -> str:
    """Say which of Python's limits valid JSON went over; the error's own words speak of Python."""
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return "a number has too many digits"


def _json_list_records(path: Path) -> Iterator[Any]:
    """Decode a list one element at a time: memory is bounded by the largest element."""
    with path.open(encoding="utf-8-sig") as file:
        window = _TextWindow(file)
        window.skip("[")
        index = 0
        while window.peek() != "]":
            if index:
                window.skip(",")
            yield window.decode_value(index)
            index += 1
        window.skip("]")
        if window.peek():
            raise InputError("there is more text after the end of the JSON list")


class _TextWindow:
    """The unread part of a text file, of which only a window is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._position = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Skip white space and give the next character, empty at the end of the file."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._read_more():
                return ""

    def skip(self, expected: str) -> None:
        """Pass over one punctuation mark.

        Raises:
            InputError: when something else stands there.
        """
        found = self.peek()
        if found != expected:
            what = f"{found!r}" if found else "the end of the file"
            raise InputError(f"not a JSON list of objects: {what} where {expected!r} was expected")
        self._position += 1

    def decode_value(self, index: int) -> Any:
        """Decode the element that starts at the next character.

        Raises:
            InputError: naming the element, when it is not JSON.
        """
        self.peek()
        while True:
            try:
                value, self._position = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if not self._may_be_cut_off(error) or not self._read_more():
                    raise InputError(f"row {index}: not JSON ({error.msg})") from error
            except (RecursionError, ValueError) as error:
                # No further text makes it any better.
                raise InputError(f"row {index}: {_over_limit(error)}") from error
            else:
                return value

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        """Tell whether the window's end, and not the file, may be what is wrong."""
        if len(self._text) > _MAX_OBJECT_CHARS:
            return False
        # An unfinished string is reported where it begins.
        is_string = self._text[error.pos : error.pos + 1] == '"'
        return is_string or error.pos + _MAX_TOKEN_CHARS > len(self._text)

    def _read_more(self) -> bool:
        # Reading as much again as is held keeps the re-decoding of a long element linear overall.
        held = self._text[self._position :]
        chunk = self._file.read(max(_CHUNK_CHARS, len(held)))
        self._text, self._position = held + chunk, 0
        return bool(chunk)


def _parquet_records(path: Path, fields: RowFields) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        columns = _present_columns(file.schema_arrow, fields)
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def _saved_dataset_records(path: Path, fields: RowFields) -> Iterator[dict[str, Any]]:
    """Read the Arrow streams that `Dataset.save_to_disk` wrote, without loading `datasets`."""
    if (path / "dataset_dict.json").is_file():
        raise InputError(f"holds several splits; give the folder of one of: {_split_names(path)}")
    try:
        state = json.loads((path / "state.json").read_text())
        shard_names = [shard["filename"] for shard in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("not a directory written by Dataset.save_to_disk") from error
    for name in shard_names:
        with pa.memory_map(str(path / name)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                # Columns first: to_pylist on a whole batch would decode latents beside the tasks.
                table = batch.select(_present_columns(batch.schema, fields))
                for start in range(0, table.num_rows, _PARQUET_BATCH_ROWS):
                    yield from table.slice(start, _PARQUET_BATCH_ROWS).to_pylist()


def _split_names(path: Path) -> str:
    try:
        return ", ".join(json.loads((path / "dataset_dict.json").read_text())["splits"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("not a directory written by Dataset.save_to_disk") from error


def _present_columns(schema: pa.Schema, fields: RowFields) -> list[str]:
    return [name for name in dict.fromkeys(fields.columns) if name in schema.names]
