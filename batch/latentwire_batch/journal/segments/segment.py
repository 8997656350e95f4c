"""One segment: the records of a log, and where each of them is.

    records    the bytes of an ordinary record log
    index      one `ENTRY` for each record
    trailer    24 bytes, numbers little-endian:

        magic      4 bytes   "LWS1"
        count      4 bytes   unsigned: records
        start      8 bytes   unsigned: bytes before the index
        checksum   4 bytes   CRC-32 of the index
        own sum    4 bytes   CRC-32 of the 20 bytes before it

A store shows a segment when its last byte has arrived. One whose end is damaged does not count, and
its rows are planned again.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire_batch.journal.record_log import Record, record_head

ENTRY = np.dtype([("row", "<i8"), ("kind", "u1"), ("offset", "<i8"), ("length", "<i8")])
"""Row, kind, first byte and number of bytes of a record."""

Entries = npt.NDArray[np.void]
# Returns the bytes of a file from one place to another.
ReadPart = Callable[[int, int], bytes]

_MAGIC = b"LWS1"
_FIELDS = struct.Struct("<4sIQI")
_CHECKSUM = struct.Struct("<I")
TRAILER_BYTES = _FIELDS.size + _CHECKSUM.size
# Holds the index of most segments, so that one request reads it.
_TAIL_BYTES = 1 << 16
_SUFFIX = ".rows"


def segment_name(process: str, number: int) -> str:
    """Return the name of a new segment; names sort by the time at which segments were begun.

    Args:
        process: no other process may have the same.
        number: of the segments that the process made before.
    """
    return f"{time.time_ns() // 1_000_000:014d}-{process}-{number:06d}{_SUFFIX}"


def is_segment(name: str) -> bool:
    """Whether a file's name is that of a segment."""
    return PurePosixPath(name).suffix == _SUFFIX and "/" not in name


class SegmentBuilder:
    """Collects records, of whose bodies it keeps views.

    Attributes:
        num_bytes: of the records.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._entries: list[tuple[int, int, int, int]] = []
        self.num_bytes = 0

    def add(self, record: Record) -> None:
        """Append a record, whose body must not change any more."""
        head = record_head(record)
        length = len(head) + record.body_bytes
        self._pieces += [head, *record.body]
        self._entries.append((record.row, record.kind, self.num_bytes, length))
        self.num_bytes += length

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._entries)

    def to_bytes(self) -> bytes:
        """Return the whole segment."""
        index = np.array(self._entries, dtype=ENTRY).tobytes()
        fields = _FIELDS.pack(_MAGIC, len(self._entries), self.num_bytes, zlib.crc32(index))
        trailer = fields + _CHECKSUM.pack(zlib.crc32(fields))
        return b"".join([*self._pieces, index, trailer])


def read_entries(size: int, read: ReadPart) -> Entries | None:
    """Read the index of a segment.

    Args:
        size: of the file, in bytes.
        read: returns a part of it.

    Returns:
        `[records]` of `ENTRY`; None: the segment does not count.
    """
    start = max(0, size - _TAIL_BYTES)
    tail = read(start, size)
    fields, checksum = tail[-TRAILER_BYTES : -_CHECKSUM.size], tail[-_CHECKSUM.size :]
    if len(tail) < TRAILER_BYTES or zlib.crc32(fields) != _CHECKSUM.unpack(checksum)[0]:
        return None
    magic, count, index_start, index_checksum = _FIELDS.unpack(fields)
    end = size - TRAILER_BYTES
    if magic != _MAGIC or index_start + count * ENTRY.itemsize != end:
        return None
    index = tail[index_start - start : end - start] if index_start >= start else None
    if index is None:
        index = read(index_start, end)
    if zlib.crc32(index) != index_checksum:
        return None
    entries: npt.NDArray[Any] = np.frombuffer(index, dtype=ENTRY)
    return entries
