"""Input formats, each as a stream of rows in bounded memory.

JSON (a list of objects), JSON Lines, Parquet, and directories written by `Dataset.save_to_disk`.
The content decides the format, not the name. Knows nothing of replicas or of the output.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.arrow_files import input_errors, record_batches
from latentwire_batch.tasks.json_list import list_elements, over_limit
from latentwire_batch.tasks.rows import Row, RowFields, extract_row

_PARQUET_MAGIC = b"PAR1"
_UTF8_MARK = b"\xef\xbb\xbf"
_BATCH_ROWS = 256


@dataclass(frozen=True)
class TaskSource:
    """An input that can be read from the start any number of times.

    Attributes:
        path: a file or a `save_to_disk` directory.
        fields: which fields make a row.
        limit: maximum number of rows to read; None: all.
    """

    path: Path
    fields: RowFields
    limit: int | None = None

    def rows(self) -> Iterator[Row]:
        """Yield the rows in input order.

        Raises:
            InputError: when the input cannot be read or a row cannot be used, naming which.
        """
        with input_errors():
            records = islice(_records(self.path, self.fields), self.limit)
            for index, record in enumerate(records):
                yield extract_row(record, index, self.fields)


def _records(path: Path, fields: RowFields) -> Iterator[Any]:
    if not path.exists():
        raise InputError("no such file or directory")
    if path.is_dir():
        return _arrow_records(path, fields)
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(_PARQUET_MAGIC):
        return _arrow_records(path, fields)
    if head.removeprefix(_UTF8_MARK).lstrip().startswith(b"["):
        return _json_list_records(path)
    return _json_lines_records(path)


def _json_list_records(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        yield from list_elements(file)


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
                    "a file holds either one list of objects or one object per line"
                ) from error
            except (RecursionError, ValueError) as error:
                raise InputError(f"line {number}: {over_limit(error)}") from error
            yield record


def _arrow_records(path: Path, fields: RowFields) -> Iterator[dict[str, Any]]:
    def present(schema: pa.Schema) -> list[str]:
        return [name for name in dict.fromkeys(fields.columns) if name in schema.names]

    for batch in record_batches(path, present, _BATCH_ROWS):
        yield from batch.to_pylist()
