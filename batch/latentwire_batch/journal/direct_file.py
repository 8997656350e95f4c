"""Writing and reading large records past the page cache.

Copying a row into the cache takes more CPU time than receiving it, and several times more where
memory is short. Must not know what is written.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Direct writes have positions, sizes and addresses that are multiples of it.
BLOCK_BYTES = 4096
# Smaller records would grow by more than three percent.
_MIN_BODY_BYTES = 256 << 10
_DIRECT = getattr(os, "O_DIRECT", 0)
# Of file systems that know no direct writes, or accept the flag alone.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


class DirectRecord(NamedTuple):
    """Whole blocks.

    Attributes:
        head: its size is a multiple of `BLOCK_BYTES`.
        body: that `DirectFile.takes` accepted.
        tail: as long as the last block of the body needs.
    """

    head: bytes
    body: memoryview
    tail: bytes

    @property
    def num_bytes(self) -> int:
        """Size of all three."""
        return len(self.head) + self.body.nbytes + len(self.tail)

    @property
    def num_whole(self) -> int:
        """Size of the body's whole blocks, which are written from where they are."""
        return self.body.nbytes // BLOCK_BYTES * BLOCK_BYTES


class DirectFile:
    """An existing file, open for direct access; not open where the file system has none.

    Args:
        path: of the file.
        flags: access mode.

    Raises:
        OSError: when the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self._ends = mmap.mmap(-1, 4 * BLOCK_BYTES)
        self._read = mmap.mmap(-1, BLOCK_BYTES)
        # Last, because nobody closes it when this fails.
        self._fd = _opened(path, flags)

    def takes(self, body: Sequence[memoryview]) -> bool:
        """Whether the body of a record can be written from where it is."""
        if self._fd is None or len(body) != 1 or body[0].nbytes < _MIN_BODY_BYTES:
            return False
        return int(np.frombuffer(body[0], np.uint8).ctypes.data) % BLOCK_BYTES == 0

    def write(self, offset: int, records: Sequence[DirectRecord]) -> bool:
        """Write records, all with one call of the system.

        Args:
            offset: a multiple of `BLOCK_BYTES`.
            records: one or more.

        Returns:
            False when nothing or only a part is written; the file is closed then, and the caller
            writes all of it in another way.

        Raises:
            OSError: when the disk is full or fails.
        """
        assert self._fd is not None
        num_bytes = sum(record.num_bytes for record in records)
        num_copied = num_bytes - sum(record.num_whole for record in records)
        if len(self._ends) < num_copied:
            self._ends = mmap.mmap(-1, num_copied)
        with memoryview(self._ends) as ends:
            pieces = _pieces(records, ends)
            try:
                num_written = os.pwritev(self._fd, [piece for piece in pieces if piece], offset)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                num_written = 0
            finally:
                for piece in pieces:
                    piece.release()
        if num_written < num_bytes:
            # A disk that is full, or a signal: the rest is no longer aligned.
            self.close()
            return False
        return True

    def read(self, offset: int, num_bytes: int) -> memoryview | None:
        """Read a body that was written here.

        Args:
            offset: of the body.
            num_bytes: its size.

        Returns:
            The body, until the next read; None when it cannot be read in this way.

        Raises:
            OSError: when the disk fails.
        """
        if self._fd is None or num_bytes < _MIN_BODY_BYTES or offset % BLOCK_BYTES:
            return None
        size = -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
        if len(self._read) < size:
            self._read = mmap.mmap(-1, size)
        try:
            num_read = os.preadv(self._fd, [memoryview(self._read)[:size]], offset)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return None
        return memoryview(self._read)[:num_bytes] if num_read >= num_bytes else None

    def close(self) -> None:
        """Close the file; nothing more is written or read here."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _pieces(records: Sequence[DirectRecord], ends: memoryview) -> list[memoryview]:
    """Return what is written: parts of bodies where they are, and all the rest in `ends`."""
    pieces, start, end = [], 0, 0
    for record in records:
        head, body, tail = record
        ends[end : end + len(head)] = head
        # Together with the end of the record before it.
        pieces += [ends[start : end + len(head)], body[: record.num_whole]]
        rest = b"".join([body[record.num_whole :], tail])
        start = end + len(head)
        end = start + len(rest)
        ends[start:end] = rest
    return [*pieces, ends[start:end]]


def _opened(path: Path, flags: int) -> int | None:
    if not _DIRECT:
        return None
    try:
        return os.open(path, flags | _DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None
