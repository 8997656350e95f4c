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

import numpy as np

# Direct writes have positions, sizes and addresses that are multiples of it.
BLOCK_BYTES = 4096
# Smaller records would grow by more than three percent.
_MIN_BODY_BYTES = 256 << 10
_DIRECT = getattr(os, "O_DIRECT", 0)
# Of file systems that know no direct writes, or accept the flag alone.
_UNSUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP})


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

    def write(self, offset: int, head: bytes, body: memoryview, tail: bytes) -> bool:
        """Write whole blocks: a head, a body, and a tail that fills its last block.

        Args:
            offset: a multiple of `BLOCK_BYTES`.
            head: its size is a multiple, too.
            body: that `takes` accepted.
            tail: as long as the last block of the body needs.

        Returns:
            False when nothing or only a part is written; the file is closed then, and the caller
            writes all of it in another way.

        Raises:
            OSError: when the disk is full or fails.
        """
        assert self._fd is not None
        num_whole = body.nbytes // BLOCK_BYTES * BLOCK_BYTES
        end = len(head) + body.nbytes - num_whole + len(tail)
        if len(self._ends) < end:
            self._ends = mmap.mmap(-1, end)
        with memoryview(self._ends) as ends:
            ends[: len(head)] = head
            ends[len(head) : end] = b"".join([body[num_whole:], tail])
            pieces = [ends[: len(head)], body[:num_whole], ends[len(head) : end]]
            try:
                num_written = os.pwritev(self._fd, [piece for piece in pieces if piece], offset)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                num_written = 0
            finally:
                for piece in pieces:
                    piece.release()
        if num_written < num_whole + end:
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


def _opened(path: Path, flags: int) -> int | None:
    if not _DIRECT:
        return None
    try:
        return os.open(path, flags | _DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None
