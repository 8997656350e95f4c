"""Input formats, each as a stream of rows in bounded memory.

JSON (a list of objects), JSON Lines, both also compressed, Parquet, Arrow, and folders of them. The
content decides the format, not the name. Knows nothing of replicas or of the output.
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, TextIO

import pyarrow as pa

from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place
from latentwire_batch.tasks.arrow_files import input_errors, record_batches
from latentwire_batch.tasks.compression import InputFile
from latentwire_batch.tasks.content import HEAD_BYTES, Content, content_of
from latentwire_batch.tasks.folders import arrow_sources
from latentwire_batch.tasks.json_list import list_elements, over_limit
from latentwire_batch.tasks.rows import (
    Row,
    RowFields,
    UnusableRow,
    extract_row,
    missing_field,
    unusable_row,
)

_BATCH_ROWS = 256
_SKIP_ADVICE = "--skip-invalid sets such rows aside"


@dataclass(frozen=True)
class TaskSource:
    """An input that can be read from the start any number of times.

    Attributes:
        path: a file or a folder.
        fields: which fields make a row.
        limit: maximum number of rows to read; None: all.
        skips_invalid: whether rows that cannot be used are set aside instead of refused.
    """

    path: Place
    fields: RowFields
    limit: int | None = None
    skips_invalid: bool = False

    def rows(self) -> Iterator[Row]:
        """Yield the rows that can be planned, in input order; raises like `all_rows`."""
        for row in self.all_rows():
            if isinstance(row, Row):
                yield row

    def unusable_rows(self) -> Iterator[UnusableRow]:
        """Yield the rows that are set aside, in input order; raises like `all_rows`."""
        for row in self.all_rows():
            if isinstance(row, UnusableRow):
                yield row

    def all_rows(self, start: int = 0) -> Iterator[Row | UnusableRow]:
        """Yield the rows in input order.

        Args:
            start: index of the first row, where other inputs precede this one.

        Raises:
            InputError: when the input cannot be read. Also when a row cannot be used, naming which,
                unless such rows are set aside.
        """
        with input_errors():
            records = read_records(self.path, self.fields)
            for index, record in enumerate(islice(records, self.limit), start):
                try:
                    row = self._row(record, index)
                except InputError as error:
                    # Where the record is read, damage may be found that has spoiled it.
                    records.throw(error)
                    raise
                yield row

    def _row(self, record: Any, index: int) -> Row | UnusableRow:
        try:
            if isinstance(record, _BrokenLine):
                raise InputError(record.reason)
            return extract_row(record, index, self.fields)
        except InputError as error:
            if not self.skips_invalid:
                raise InputError(f"{error}; {_SKIP_ADVICE}") from error
            return unusable_row(record, index, self.fields, str(error))


@dataclass(frozen=True)
class _BrokenLine:
    """A line that could not be decoded; those after it may be fine."""

    reason: str


def read_records(path: Place, fields: RowFields) -> Generator[Any, None, None]:
    """Yield the records of a file or folder in order, as decoded; a broken line is no dict.

    An InputError that is thrown into it comes back, or one that says that the file is damaged.

    Args:
        path: of the input.
        fields: columns to read of a columnar file.

    Raises:
        InputError: when the input cannot be read; see also `input_errors`.
    """
    if not path.exists():
        raise InputError("no such file or folder")
    if path.is_dir():
        for source in arrow_sources(path):
            yield from _arrow_records(source, fields)
        return
    if not path.is_file():
        raise InputError("is a pipe or a device, but the input is read twice; pass a file")
    file = InputFile.of(path)
    with file.open() as content, _damage_first(file, content):
        kind = content_of(content.read(HEAD_BYTES), file.compression)
    if kind is Content.ARROW:
        yield from _arrow_records(path, fields)
        return
    with file.open() as content:
        is_list = kind is Content.JSON_LIST
        # Decoding lines never fails: one that is not UTF-8 must not end the reading.
        errors = "strict" if is_list else "surrogateescape"
        with (
            io.TextIOWrapper(content, encoding="utf-8-sig", errors=errors) as text,
            _damage_first(file, content),
        ):
            yield from list_elements(text) if is_list else _json_lines(text)


@contextmanager
def _damage_first(file: InputFile, content: IO[bytes]) -> Iterator[None]:
    """Raise DamagedError in place of other errors of content that comes from damaged data."""
    try:
        yield
    except (InputError, UnicodeDecodeError):
        file.refuse_damaged(content)
        raise


def _json_lines(file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _decoded_line(line, number)


def _decoded_line(line: str, number: int) -> Any:
    try:
        # Only bytes that are not UTF-8 become half of a surrogate pair.
        line.encode()
        return json.loads(line)
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        return _BrokenLine(f"line {number} cannot be decoded: byte {byte:#04x} is not UTF-8 text")
    except json.JSONDecodeError as error:
        if not line.strip("\0\r\n\t "):
            return _BrokenLine(f"line {number} consists of NUL bytes, where writing was cut off")
        return _BrokenLine(
            f"line {number} is not JSON ({error.msg.removesuffix(' at')} at column {error.colno}); "
            "a file holds either one list of objects or one object per line"
        )
    except (RecursionError, ValueError) as error:
        return _BrokenLine(f"line {number}: {over_limit(error)}")


def _arrow_records(path: Place, fields: RowFields) -> Iterator[dict[str, Any]]:
    def present(schema: pa.Schema) -> list[str]:
        if not set(fields.task_columns) & set(schema.names):
            raise missing_field(fields, schema.names, 0)
        return [name for name in dict.fromkeys(fields.columns) if name in schema.names]

    for batch in record_batches(path, present, _BATCH_ROWS):
        yield from batch.to_pylist()
