"""Large output files that bypass the page cache and are on disk when they are closed."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire_batch.dataset.checksum import crc32
from latentwire_batch.dataset.file_digests import FileDigest

_BLOCK_BYTES = 8 << 20
# One block is filled while the other one is written.
_NUM_BLOCKS = 2
_DIRECT = getattr(os, "O_DIRECT", 0)


class DurableFile:
    """A new file for one thread, written from start to end.

    Where the file system can, blocks go to the disk directly: copying a dataset, which is larger
    than the page cache, into that cache takes as much CPU time as encoding it. Elsewhere, each
    block is synced and dropped from the cache.

    It is enough of a Python file for Arrow to write to.

    Args:
        path: of the file, which is replaced if it exists.

    Raises:
        OSError: when the file cannot be opened. Later failures show in `write` and `close`.
    """

    def __init__(self, path: Path) -> None:
        self._fd, self._is_direct = _open(path)
        # A write that fails elsewhere leaves this file open: it is closed when it is dropped.
        self._closes = weakref.finalize(self, os.close, self._fd)
        # Direct writes need aligned memory, which a mapping is.
        self._blocks = [
            np.frombuffer(mmap.mmap(-1, _BLOCK_BYTES), dtype=np.uint8) for _ in range(_NUM_BLOCKS)
        ]
        self._num_filled = 0
        self._num_submitted = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self._writing: deque[Future[None]] = deque()
        self._crc32 = 0

    @property
    def digest(self) -> FileDigest:
        """The digest of all bytes; complete when the file is closed."""
        return FileDigest(self.tell(), self._crc32)

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return not self._closes.alive

    def tell(self) -> int:
        """Return the number of bytes that were passed to `write`."""
        return self._num_submitted + self._num_filled

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Do nothing: bytes reach the disk in whole blocks, and at the end."""

    def write(self, data: bytes | pa.Buffer) -> int:
        """Append bytes; the file keeps no reference to them.

        Args:
            data: to append.

        Returns:
            The number of bytes.

        Raises:
            OSError: when this or an earlier block cannot be written.
        """
        view = memoryview(data)
        if not view.nbytes:
            return 0
        source = np.frombuffer(view, dtype=np.uint8)
        position = 0
        while position < source.size:
            size = min(source.size - position, _BLOCK_BYTES - self._num_filled)
            end = self._num_filled + size
            # NumPy copies without the GIL.
            self._blocks[0][self._num_filled : end] = source[position : position + size]
            self._num_filled, position = end, position + size
            if end == _BLOCK_BYTES:
                self._submit()
        return source.size

    def close(self) -> None:
        """Write what is left, and wait until all of it is on disk.

        Raises:
            OSError: when some of it cannot be written.
        """
        if self.closed:
            return
        self._wait(0)
        if self._is_direct:
            # The last block is not whole, which a direct write must be.
            self._stop_direct()
        rest = self._blocks[0][: self._num_filled]
        self._crc32 = crc32(rest.data, self._crc32)
        self._write_all(rest, self._num_submitted)
        os.fsync(self._fd)
        self._drop_cached()
        self._writer.shutdown()
        self._closes()

    def _submit(self) -> None:
        block, offset = self._blocks.pop(0), self._num_submitted
        self._writing.append(self._writer.submit(self._write_block, block, offset))
        self._blocks.append(block)
        self._num_submitted, self._num_filled = offset + block.size, 0
        self._wait(_NUM_BLOCKS - 1)

    def _wait(self, num_left: int) -> None:
        while len(self._writing) > num_left:
            self._writing.popleft().result()

    def _write_block(self, block: npt.NDArray[np.uint8], offset: int) -> None:
        # In the thread that waits for the disk, where it delays no batch.
        self._crc32 = crc32(block.data, self._crc32)
        try:
            self._write_all(block, offset)
        except OSError as error:
            # Some file systems accept the flag, but not the writes.
            if not self._is_direct or error.errno != errno.EINVAL:
                raise
            self._stop_direct()
            self._write_all(block, offset)
        if not self._is_direct:
            os.fsync(self._fd)
            self._drop_cached()

    def _write_all(self, data: npt.NDArray[np.uint8], offset: int) -> None:
        rest = data.data
        while rest.nbytes:
            # A full disk or a signal can cut a write short: write the rest.
            num_written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[num_written:], offset + num_written

    def _stop_direct(self) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~_DIRECT)
        self._is_direct = False

    def _drop_cached(self) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _open(path: Path) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    if _DIRECT:
        try:
            return os.open(path, flags | _DIRECT, 0o666), True
        except OSError as error:
            # For example a file system in memory.
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False
