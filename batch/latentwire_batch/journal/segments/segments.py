"""All segments of a run: a log that is read from a store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire_batch.errors import LocationError, storage_error
from latentwire_batch.journal.record_log import Record, RecordRef
from latentwire_batch.journal.segments.patience import patiently
from latentwire_batch.journal.segments.reading import (
    checked_record,
    copy_body,
    read_part,
    read_records,
)
from latentwire_batch.journal.segments.row_index import RecordFile, RowIndex
from latentwire_batch.journal.segments.segment import ENTRY, Entries, is_segment, read_entries
from latentwire_batch.journal.session_time import is_session_time, read_session_time
from latentwire_batch.locations import Folder

_READS_AT_A_TIME = 16


class Segments:
    """The segments in a folder. Those that were listed once are not read again.

    Args:
        folder: that holds them.

    Attributes:
        elapsed_s: seconds of the sessions that made them, as of the last listing.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.elapsed_s = 0.0
        self._known: dict[str, Entries] = {}

    def open(self) -> SegmentsLog:
        """List the segments that count; a log of their records.

        Raises:
            StorageError: when the store cannot be read.
        """
        try:
            sizes = patiently(self.folder.sizes)
        except LocationError as error:
            raise storage_error("cannot be read", error) from error
        found = {name: size for name, size in sizes.items() if is_segment(name)}
        new = [name for name in found if name not in self._known]
        with ThreadPoolExecutor(_READS_AT_A_TIME, thread_name_prefix="read-index") as pool:
            entries = pool.map(lambda name: self._read(name, found[name]), new)
            times = pool.map(self._read_time, filter(is_session_time, sizes))
            self.elapsed_s = sum(times)
            for name, read in zip(new, entries, strict=True):
                if read is not None:
                    self._known[name] = read
        names = sorted(found.keys() & self._known.keys())
        return SegmentsLog(self.folder, names, [self._known[name] for name in names])

    def _read_time(self, name: str) -> float:
        try:
            return patiently(lambda: read_session_time(self.folder, name))
        except LocationError as error:
            raise storage_error("cannot be read", error) from error

    def _read(self, name: str, size: int) -> Entries | None:
        file = RecordFile(self.folder, name)
        return read_entries(size, lambda start, stop: read_part(file, start, stop))


class SegmentsLog:
    """The records of all segments: a `RowLog` in which a record's place is its number.

    Args:
        folder: that holds the segments.
        names: of the segments, in the order in which they were begun.
        entries: the index of each.
    """

    def __init__(self, folder: Folder, names: Sequence[str], entries: Sequence[Entries]) -> None:
        joined = np.concatenate(entries) if entries else np.zeros(0, dtype=ENTRY)
        self._kinds = joined["kind"]
        self._index = RowIndex(
            files=tuple(RecordFile(folder, name) for name in names),
            rows=joined["row"],
            file_numbers=np.repeat(
                np.arange(len(names), dtype=np.int32), [len(each) for each in entries]
            ),
            offsets=joined["offset"],
            lengths=joined["length"],
        )
        self._expected: Iterator[tuple[int, memoryview]] = iter(())
        self._current: tuple[int, Record] | None = None

    def recover(self) -> Iterator[RecordRef]:
        """Yield every record, the older ones first."""
        rows, kinds = self._index.rows.tolist(), self._kinds.tolist()
        for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
            yield RecordRef(kind, row, number)

    def will_read(self, offsets: npt.NDArray[np.int64]) -> None:
        """Read records ahead from now on, in this order."""
        records = read_records(self._index.take(offsets))
        self._expected = zip(offsets.tolist(), records, strict=True)

    def read_meta(self, offset: int) -> dict[str, Any]:
        """Read a record's JSON object."""
        return self._record(offset).meta

    def read_body_into(self, offset: int, out: Sequence[npt.NDArray[Any]]) -> None:
        """Read a record's body into arrays; see `RecordLog.read_body_into`."""
        record = self._record(offset)
        copy_body(record.row, record.body[0], out)

    def locate(self, _rows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> RowIndex:
        """Return where records are."""
        return self._index.take(offsets)

    def close(self) -> None:
        """Read no more."""
        self._expected = iter(())
        self._current = None

    def _record(self, number: int) -> Record:
        if self._current is not None and self._current[0] == number:
            return self._current[1]
        expected, data = next(self._expected, (None, None))
        if data is None or expected != number:
            self._expected = iter(())
            data = next(read_records(self._index.take([number])))
        self._current = (number, checked_record(data))
        return self._current[1]
