"""Where the records of rows are, as a value that any machine can read them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire_batch.locations import Folder

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecordFile:
    """A file that holds records: a segment, or the log of a process.

    Attributes:
        folder: that holds the file.
        name: of the file, relative to the folder.
    """

    folder: Folder
    name: str


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Places of records. A value that can be sent to another process: 28 bytes for each row.

    All arrays have one element for each record, in the order in which they are to be read.

    Attributes:
        files: that hold the records.
        rows: index of the row that the record is about, `int64`.
        file_numbers: place of its file in `files`, `int32`.
        offsets: of its first byte in the file, `int64`.
        lengths: in bytes, `int64`.
    """

    files: tuple[RecordFile, ...]
    rows: Numbers
    file_numbers: npt.NDArray[np.int32]
    offsets: Numbers
    lengths: Numbers

    def __len__(self) -> int:
        """Return the number of records."""
        return int(self.rows.size)

    @property
    def num_bytes(self) -> int:
        """Of all records."""
        return int(self.lengths.sum())

    @classmethod
    def joined(cls, parts: Sequence[RowIndex]) -> RowIndex:
        """Return the records of several indexes, one after the other."""
        starts = np.cumsum([0, *(len(part.files) for part in parts)], dtype=np.int32)
        numbers = [
            part.file_numbers + start for part, start in zip(parts, starts[:-1], strict=True)
        ]
        return cls(
            files=tuple(file for part in parts for file in part.files),
            rows=_joined([part.rows for part in parts], np.int64),
            file_numbers=_joined(numbers, np.int32),
            offsets=_joined([part.offsets for part in parts], np.int64),
            lengths=_joined([part.lengths for part in parts], np.int64),
        )

    def take(self, places: Sequence[int] | npt.NDArray[Any]) -> RowIndex:
        """Return some of the records.

        Args:
            places: in the arrays, in the new order.
        """
        chosen = np.asarray(places, dtype=np.int64)
        used, numbers = np.unique(self.file_numbers[chosen], return_inverse=True)
        return RowIndex(
            files=tuple(self.files[int(number)] for number in used),
            rows=self.rows[chosen],
            file_numbers=numbers.astype(np.int32),
            offsets=self.offsets[chosen],
            lengths=self.lengths[chosen],
        )

    def of_rows(self, start: int, stop: int) -> RowIndex:
        """Return the records of the rows from `start` to `stop`; this index is sorted by row."""
        first, last = np.searchsorted(self.rows, [start, stop])
        return self.take(np.arange(first, last))


def _joined(arrays: Sequence[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=kind), *arrays])
