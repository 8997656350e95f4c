"""An append-only file of checksummed records, which shows after a crash which records survived.

One record, all numbers little-endian:

    magic      4 bytes   "LWR1"
    kind       1 byte    type of the record; this module does not interpret it
    reserved   3 bytes   zero
    meta size  4 bytes   unsigned: bytes of the JSON object that follows the header
    row        8 bytes   signed: index of the row that the record is about
    body size  8 bytes   unsigned: bytes of raw data that follow the JSON object
    checksum   4 bytes   CRC-32 of JSON object and raw data
    header sum 4 bytes   CRC-32 of the 32 header bytes before it

Large records are written in whole blocks, so that they can bypass the page cache: spaces after the
JSON object put the body at a multiple of 4,096, and a record of kind 0, which says nothing, fills
what is left of the last block.

A torn write shows as a header or a body that does not match its checksum. The log ends before the
first damaged header, because nothing after it can be located. A damaged body in the middle costs
only its own record.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json, to_json

from latentwire_batch.dataset.checksum import crc32
from latentwire_batch.errors import StorageError, storage_error
from latentwire_batch.journal.direct_file import BLOCK_BYTES, DirectFile, DirectRecord
from latentwire_batch.journal.segments.row_index import RecordFile, RowIndex
from latentwire_batch.locations import Folder

_MAGIC = b"LWR1"
_FIELDS = struct.Struct("<4sBxxxIqQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_READ_BYTES = 1 << 20
# Of one write; the system's limit.
_MAX_PIECES = 1024
# Beyond it, the system cuts a write short sooner or later, and sharing saves next to nothing.
_MAX_SHARED_BYTES = 64 << 20
PADDING_KIND = 0


@dataclass(frozen=True)
class Record:
    """One record to write.

    Attributes:
        kind: 0..255, the type of the record.
        row: index of the row that the record is about.
        meta: a JSON object.
        body: raw data in pieces, each as one-dimensional unsigned bytes; may be empty.
    """

    kind: int
    row: int
    meta: dict[str, Any]
    body: Sequence[memoryview] = ()

    @property
    def body_bytes(self) -> int:
        """Size of the raw data."""
        return sum(piece.nbytes for piece in self.body)


@dataclass(frozen=True)
class RecordRef:
    """Place of a whole record in the file.

    Attributes:
        kind: the type of the record.
        row: index of the row that the record is about.
        offset: of its header, in bytes from the file's start.
    """

    kind: int
    row: int
    offset: int


@dataclass(frozen=True)
class _Header:
    kind: int
    meta_bytes: int
    row: int
    body_bytes: int
    checksum: int

    @property
    def record_bytes(self) -> int:
        return HEADER_BYTES + self.meta_bytes + self.body_bytes


def _damaged(header: _Header) -> StorageError:
    return StorageError(
        f"the record of row {header.row} is damaged; rerun the same command to redo it"
    )


def record_head(record: Record, multiple_of: int = 1) -> bytes:
    """Return what stands in front of a record's body: its header and its JSON object.

    Args:
        record: to write.
        multiple_of: spaces after the object make the size a multiple of it.
    """
    meta = to_json(record.meta)
    meta += b" " * (-(HEADER_BYTES + len(meta)) % multiple_of)
    checksum = crc32(meta)
    for piece in record.body:
        checksum = crc32(piece, checksum)
    fields = _FIELDS.pack(_MAGIC, record.kind, len(meta), record.row, record.body_bytes, checksum)
    return fields + _CHECKSUM.pack(crc32(fields)) + meta


def _padding_after(position: int) -> bytes:
    """Return a record that ends at a multiple of a block; empty where the position is one."""
    size = -position % BLOCK_BYTES
    if not size:
        return b""
    if size < _MIN_PADDING_BYTES:
        size += BLOCK_BYTES
    return record_head(Record(PADDING_KIND, -1, {}), size)


def parse_record(data: memoryview) -> Record:
    """Read a whole record from memory; its body is a view of the memory.

    Raises:
        StorageError: when it does not match its checksums.
    """
    header = _parse_header(bytes(data[:HEADER_BYTES]))
    if header is None:
        raise StorageError("a record of a finished row is damaged")
    content = data[HEADER_BYTES : header.record_bytes]
    if crc32(content) != header.checksum:
        raise StorageError(f"the record of row {header.row} is damaged")
    meta = from_json(bytes(content[: header.meta_bytes]))
    return Record(header.kind, header.row, meta, [content[header.meta_bytes :]])


def _parse_header(raw: bytes) -> _Header | None:
    if len(raw) < HEADER_BYTES:
        return None
    fields, checksum = raw[: _FIELDS.size], raw[_FIELDS.size :]
    if crc32(fields) != _CHECKSUM.unpack(checksum)[0]:
        return None
    magic, kind, meta_bytes, row, body_bytes, body_checksum = _FIELDS.unpack(fields)
    if magic != _MAGIC:
        return None
    return _Header(kind, meta_bytes, row, body_bytes, body_checksum)


_MIN_PADDING_BYTES = len(record_head(Record(PADDING_KIND, -1, {})))


class RecordLog:
    """One log file, open for appending and for reading back.

    Appending and syncing may be called from worker threads, one append at a time.

    Args:
        path: of the file; an own log is created if it is missing.
        is_own: False for another process's log, which is only read.

    Attributes:
        path: of the file.

    Raises:
        StorageError: when the file cannot be opened. Every other method raises it when the file
            cannot be read or written.
    """

    def __init__(self, path: Path, is_own: bool = True) -> None:
        self.path = path
        self._is_own = is_own
        flags = os.O_RDWR | os.O_CREAT if is_own else os.O_RDONLY
        with ExitStack() as opened:
            try:
                self._fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
                opened.callback(os.close, self._fd)
                self._size = os.fstat(self._fd).st_size
                self._direct = DirectFile(path, os.O_RDWR if is_own else os.O_RDONLY)
            except OSError as error:
                raise storage_error("cannot be opened", error) from error
            opened.pop_all()

    def recover(self) -> Iterator[RecordRef]:
        """Yield every whole record from the start, then cut off the rest of a torn write.

        Must run to its end before the first `append`.
        """
        offset = 0
        try:
            while (header := self._header_at(offset)) is not None:
                if offset + header.record_bytes > self._size:
                    break
                is_whole = self._body_checksum(header, offset) == header.checksum
                if is_whole and header.kind != PADDING_KIND:
                    yield RecordRef(header.kind, header.row, offset)
                offset += header.record_bytes
            if self._is_own and offset < self._size:
                os.ftruncate(self._fd, offset)
                self._size = offset
        except OSError as error:
            raise storage_error("cannot be read", error) from error

    def append(self, record: Record) -> RecordRef:
        """Write a record at the end; a failed write leaves the file as it was."""
        return self.append_all([record])[0]

    def append_all(self, records: Sequence[Record]) -> list[RecordRef]:
        """Write records at the end; a failed write leaves the file as it was.

        Neighbours share a write, because each one costs a wait and a wake-up of the thread.
        """
        end, offsets = self._size, list[int]()
        try:
            for is_direct, group in groupby(records, lambda each: self._direct.takes(each.body)):
                offsets += (self._append_blocks if is_direct else self._append_bytes)(list(group))
        except Exception as error:
            self._size = end
            with suppress(OSError):
                os.ftruncate(self._fd, end)
            if isinstance(error, OSError):
                raise storage_error("cannot be written", error) from error
            raise
        return [
            RecordRef(record.kind, record.row, offset)
            for record, offset in zip(records, offsets, strict=True)
        ]

    def sync(self) -> None:
        """Make everything appended before durable."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise storage_error("cannot be written", error) from error

    def locate(self, rows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> RowIndex:
        """Return where records are.

        Args:
            rows: that they are about.
            offsets: of the records.
        """
        lengths = [self._known_header(offset).record_bytes for offset in offsets.tolist()]
        return RowIndex(
            files=(RecordFile(Folder(str(self.path.parent.absolute())), self.path.name),),
            rows=rows,
            file_numbers=np.zeros(rows.size, dtype=np.int32),
            offsets=offsets,
            lengths=np.array(lengths, dtype=np.int64),
        )

    def will_read(self, offsets: npt.NDArray[np.int64]) -> None:
        """Hear in which order records are read from now on; the system reads ahead by itself."""

    def read_meta(self, offset: int) -> dict[str, Any]:
        """Read a record's JSON object, without its body."""
        header = self._known_header(offset)
        try:
            meta = os.pread(self._fd, header.meta_bytes, offset + HEADER_BYTES)
            value: dict[str, Any] = from_json(meta)
        except OSError as error:
            raise storage_error("cannot be read", error) from error
        except ValueError as error:
            raise _damaged(header) from error
        return value

    def read_body_into(self, offset: int, out: Sequence[npt.NDArray[Any]]) -> None:
        """Read a record's body into arrays, one after the other, and check it.

        Args:
            offset: of the record.
            out: C-order arrays that together have exactly the body's size.

        Raises:
            StorageError: when the record no longer matches its checksum, or has another size.
        """
        header = self._known_header(offset)
        # Arrays without elements have no bytes to view.
        targets = [array.reshape(-1).view(np.uint8) for array in out if array.size]
        if sum(target.nbytes for target in targets) != header.body_bytes:
            raise _damaged(header)
        position = offset + HEADER_BYTES
        try:
            meta = os.pread(self._fd, header.meta_bytes, position)
            position += header.meta_bytes
            read = self._direct.read(position, header.body_bytes)
            for target in targets:
                if read is None:
                    self._read_exactly(target.data, position)
                    position += target.nbytes
                else:
                    # NumPy copies without the GIL.
                    target[:] = np.frombuffer(read[: target.nbytes], np.uint8)
                    read = read[target.nbytes :]
        except OSError as error:
            raise storage_error("cannot be read", error) from error
        checksum = crc32(meta)
        for target in targets:
            checksum = crc32(target, checksum)
        if checksum != header.checksum:
            raise _damaged(header)

    def close(self) -> None:
        """Close the file."""
        self._direct.close()
        os.close(self._fd)

    def _append_blocks(self, records: Sequence[Record]) -> list[int]:
        """Append records in whole blocks; return their places."""
        if len(records) > 1 and sum(each.body_bytes for each in records) > _MAX_SHARED_BYTES:
            return [place for each in records for place in self._append_blocks([each])]
        self._append_pieces([_padding_after(self._size)])
        blocks = [
            DirectRecord(
                record_head(record, BLOCK_BYTES), record.body[0], _padding_after(record.body_bytes)
            )
            for record in records
        ]
        *offsets, end = accumulate((each.num_bytes for each in blocks), initial=self._size)
        if self._direct.write(self._size, blocks):
            self._size = end
        else:
            for each in blocks:
                self._append_pieces([each.head, each.body, each.tail])
        return offsets

    def _append_bytes(self, records: Sequence[Record]) -> list[int]:
        """Append records one right after the other; return their places."""
        wholes: list[list[bytes | memoryview]] = [
            [record_head(record), *record.body] for record in records
        ]
        sizes = (sum(map(len, whole)) for whole in wholes)
        *offsets, _ = accumulate(sizes, initial=self._size)
        self._append_pieces([piece for whole in wholes for piece in whole])
        return offsets

    def _append_pieces(self, pieces: Sequence[bytes | memoryview]) -> None:
        views = [memoryview(piece) for piece in pieces]
        self._write_at(self._size, views)
        self._size += sum(view.nbytes for view in views)

    def _write_at(self, offset: int, pieces: list[memoryview]) -> None:
        pieces = [piece for piece in pieces if piece.nbytes]
        while pieces:
            written = os.pwritev(self._fd, pieces[:_MAX_PIECES], offset)
            offset += written
            # A full disk or a signal can cut a write short: write the rest.
            while pieces and written >= pieces[0].nbytes:
                written -= pieces.pop(0).nbytes
            if written:
                pieces[0] = pieces[0][written:]

    def _read_exactly(self, target: memoryview, offset: int) -> None:
        while target.nbytes:
            num_read = os.preadv(self._fd, [target], offset)
            if num_read == 0:
                raise StorageError("the log of finished rows has become shorter")
            target, offset = target[num_read:], offset + num_read

    def _header_at(self, offset: int) -> _Header | None:
        return _parse_header(os.pread(self._fd, HEADER_BYTES, offset))

    def _known_header(self, offset: int) -> _Header:
        try:
            header = self._header_at(offset)
        except OSError as error:
            raise storage_error("cannot be read", error) from error
        if header is None:
            raise StorageError(
                "a record of a finished row is damaged; rerun the same command to redo it"
            )
        return header

    def _body_checksum(self, header: _Header, offset: int) -> int:
        checksum = 0
        position, end = offset + HEADER_BYTES, offset + header.record_bytes
        while position < end:
            chunk = os.pread(self._fd, min(_READ_BYTES, end - position), position)
            if not chunk:
                break
            checksum = crc32(chunk, checksum)
            position += len(chunk)
        return checksum
