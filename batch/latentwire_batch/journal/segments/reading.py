"""Reading records in a given order from files that are far away, in bounded memory.

Neighbouring records of a file are read by one request, several requests run at a time, and the next
ones run while the records before them are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire_batch.errors import LocationError, StorageError, storage_error
from latentwire_batch.journal.record_log import Record, parse_record
from latentwire_batch.journal.row_records import StoredRow, stored_row
from latentwire_batch.journal.segments.patience import patiently
from latentwire_batch.journal.segments.row_index import RecordFile, RowIndex

# Two windows are in memory: the one that is used, and the next.
_WINDOW_BYTES = 32 << 20
_WINDOW_ROWS = 8192
# A request costs more time than reading so many bytes for nothing.
_GAP_BYTES = 128 << 10
_REQUEST_BYTES = 8 << 20
_REQUESTS_AT_A_TIME = 8


@dataclass(frozen=True, eq=False)
class LoggedRow:
    """A finished row.

    Attributes:
        index: of the row.
        stored: the row without its matrices.
        body: its matrices.
    """

    index: int
    stored: StoredRow
    body: memoryview

    def read_into(self, out: Sequence[npt.NDArray[Any]]) -> None:
        """Copy the row's matrices.

        Args:
            out: as in `RowStore.read_matrices_into`.

        Raises:
            StorageError: when they have another size.
        """
        copy_body(self.index, self.body, out)


def read_rows(index: RowIndex) -> Iterator[LoggedRow]:
    """Read finished rows in the order of an index; 64 MB or two rows are in memory.

    The files may be in a store or in a folder of this machine.

    Args:
        index: of records of finished rows.

    Raises:
        StorageError: when a file cannot be read, or a record is damaged.
    """
    for data in read_records(index):
        record = checked_record(data)
        yield LoggedRow(record.row, stored_row(record.meta), record.body[0])


def read_records(index: RowIndex) -> Iterator[memoryview]:
    """Read records in the order of an index, unchecked; see `read_rows`."""
    with ThreadPoolExecutor(_REQUESTS_AT_A_TIME, thread_name_prefix="read-rows") as pool:
        windows: deque[_Window] = deque()
        try:
            for places in _windows(index.lengths):
                windows.append(_Window(index.take(places), pool))
                if len(windows) > 1:
                    yield from windows[0].records()
                    windows.popleft()
            for window in windows:
                yield from window.records()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def checked_record(data: memoryview) -> Record:
    """Return a record of a segment.

    Raises:
        StorageError: when it is damaged.
    """
    try:
        return parse_record(data)
    except StorageError as error:
        raise StorageError(
            f"{error}: the store does not return what was put there; --overwrite starts from "
            "scratch"
        ) from error


def copy_body(row: int, body: memoryview, out: Sequence[npt.NDArray[Any]]) -> None:
    """Copy a record's body into arrays, one after the other, which together have its size.

    Raises:
        StorageError: when they have another size.
    """
    targets = [array.reshape(-1).view(np.uint8).data for array in out if array.size]
    if sum(target.nbytes for target in targets) != body.nbytes:
        raise StorageError(f"the record of row {row} is damaged")
    position = 0
    for target in targets:
        target[:] = body[position : position + target.nbytes]
        position += target.nbytes


def read_part(file: RecordFile, start: int, stop: int) -> bytes:
    """Read a part of a file.

    Raises:
        StorageError: when it cannot be read.
    """
    try:
        data = patiently(lambda: file.folder.read_part(file.name, start, stop))
    except LocationError as error:
        raise storage_error("cannot be read", error) from error
    if len(data) != stop - start:
        raise StorageError("a file of finished rows has become shorter")
    return data


class _Window:
    """Records that are read together.

    Args:
        index: of them.
        pool: reads.
    """

    def __init__(self, index: RowIndex, pool: ThreadPoolExecutor) -> None:
        self._index = index
        self._parts: list[tuple[int, Future[bytes]]] = [(0, Future())] * len(index)
        order = np.lexsort((index.offsets, index.file_numbers))
        for places in _requests(index, order):
            start = int(index.offsets[places[0]])
            stop = max(int(index.offsets[place] + index.lengths[place]) for place in places)
            file = index.files[int(index.file_numbers[places[0]])]
            part = pool.submit(read_part, file, start, stop)
            for place in places:
                self._parts[place] = (int(index.offsets[place]) - start, part)

    def records(self) -> Iterator[memoryview]:
        for (start, part), length in zip(self._parts, self._index.lengths, strict=True):
            yield memoryview(part.result())[start : start + int(length)]


def _windows(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield places of records that are read together."""
    ends = np.cumsum(lengths)
    first = 0
    while first < ends.size:
        before = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, before + _WINDOW_BYTES, side="right"))
        last = min(max(last, first + 1), first + _WINDOW_ROWS)
        yield np.arange(first, last)
        first = last


def _requests(index: RowIndex, order: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield places of records that one request reads: near each other in one file."""
    group: list[int] = []
    start = stop = 0
    for place in map(int, order):
        offset, length = int(index.offsets[place]), int(index.lengths[place])
        is_near = (
            bool(group)
            and index.file_numbers[place] == index.file_numbers[group[-1]]
            and offset - stop <= _GAP_BYTES
            and offset + length - start <= _REQUEST_BYTES
        )
        if not is_near:
            if group:
                yield group
            group, start, stop = [], offset, offset
        group.append(place)
        stop = max(stop, offset + length)
    if group:
        yield group
