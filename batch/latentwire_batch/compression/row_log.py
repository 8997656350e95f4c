"""Compressed rows of an unfinished `latentwire compress`, in an append-only log.

In memory it keeps 9 bytes per row, whatever the size of the matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from latentwire_batch.compression.record_body import (
    body_arrays,
    body_pieces,
    describe_matrices,
    empty_matrices,
)
from latentwire_batch.compression.stored_form import Matrices
from latentwire_batch.errors import StorageError
from latentwire_batch.journal.record_log import Record, RecordLog


class _Kind(IntEnum):
    COMPRESSED = 1
    FAILED = 2


@dataclass(frozen=True)
class LostRow:
    """A row whose latent cannot be stored in the wanted form.

    Attributes:
        index: of the row in the dataset that is read.
        task_id: of the row.
        code: for `failures.jsonl`.
        message: the reason, in words.
    """

    index: int
    task_id: str
    code: str
    message: str


class CompressedRows:
    """The rows that are settled, appended to a log and found by index. Used as a context.

    Args:
        path: of the log; it is created if it is missing.
        num_rows: of the dataset.

    Raises:
        StorageError: when the log cannot be opened. Every other method raises it when the log
            cannot be read or written.
    """

    def __init__(self, path: Path, num_rows: int) -> None:
        self._log = RecordLog(path)
        self._offsets = np.zeros(num_rows, dtype=np.int64)
        self._states = np.zeros(num_rows, dtype=np.uint8)
        for ref in self._log.recover():
            if 0 <= ref.row < num_rows:
                self._offsets[ref.row], self._states[ref.row] = ref.offset, ref.kind

    def __enter__(self) -> CompressedRows:
        """Return the rows themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        self._log.close()

    @property
    def num_settled(self) -> int:
        """Rows that are compressed or lost."""
        return int(np.count_nonzero(self._states))

    @property
    def num_lost(self) -> int:
        """Rows that are lost."""
        return int(np.count_nonzero(self._states == _Kind.FAILED))

    def is_settled(self, index: int) -> bool:
        """Whether a row is compressed or lost."""
        return bool(self._states[index])

    def is_lost(self, index: int) -> bool:
        """Whether a row is lost."""
        return bool(self._states[index] == _Kind.FAILED)

    def add(self, index: int, matrices: Matrices) -> None:
        """Append a row; it is durable after the next `sync`."""
        meta = {"matrices": describe_matrices(matrices)}
        self._append(Record(_Kind.COMPRESSED, index, meta, body_pieces(matrices)))

    def add_lost(self, row: LostRow) -> None:
        """Append a row that is lost."""
        meta = {"task_id": row.task_id, "code": row.code, "message": row.message}
        self._append(Record(_Kind.FAILED, row.index, meta))

    def sync(self) -> None:
        """Make everything appended before durable."""
        self._log.sync()

    def read(self, index: int) -> Matrices:
        """Read what is stored of a row's latent, by column."""
        offset = int(self._offsets[index])
        try:
            matrices = empty_matrices(self._log.read_meta(offset)["matrices"])
        except (LookupError, TypeError, ValueError) as error:
            raise StorageError(f"the record of row {index} is damaged") from error
        self._log.read_body_into(offset, body_arrays(matrices))
        return matrices

    def lost(self) -> Iterator[LostRow]:
        """Yield the rows that are lost, in order."""
        for index in np.flatnonzero(self._states == _Kind.FAILED):
            yield LostRow(int(index), **self._log.read_meta(int(self._offsets[index])))

    def _append(self, record: Record) -> None:
        ref = self._log.append(record)
        self._offsets[ref.row], self._states[ref.row] = ref.offset, ref.kind
