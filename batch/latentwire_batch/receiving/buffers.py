"""Memory that answers are received into, used again for later answers.

Fresh memory of a megabyte costs as much as receiving it: the system clears each of its pages. Must
not know what is received.
"""

from __future__ import annotations

import mmap
import weakref
from bisect import bisect_left, insort
from collections import deque
from operator import attrgetter

import numpy as np

# Enough for the rows that are in flight at one busy replica; more are freed and made again.
DEFAULT_IDLE_BYTES = 64 << 20
# Direct writes, which the log makes of an answer's values, have addresses at a multiple of it.
ALIGNMENT_BYTES = 4096
# A block may be so much larger than what is wanted.
_MAX_WASTE = 2
_size_of = attrgetter("nbytes")


class BufferPool:
    """Blocks of memory for answers. Belongs to one event loop.

    A block returns by itself when nothing refers to it any more, on whichever thread that happens.
    So an array that somebody keeps is never overwritten.

    Args:
        max_idle_bytes: unused blocks beyond it are freed.
    """

    def __init__(self, max_idle_bytes: int = DEFAULT_IDLE_BYTES) -> None:
        self._max_idle_bytes = max_idle_bytes
        # In the order of their sizes.
        self._idle: list[memoryview] = []
        self._idle_bytes = 0
        # Filled where a lock could be held already, as garbage is collected at any moment.
        self._returned: deque[memoryview] = deque()

    @property
    def idle_bytes(self) -> int:
        """Size of the unused blocks."""
        self._collect()
        return self._idle_bytes

    def take(self, num_bytes: int, aligned_at: int = 0) -> memoryview:
        """Return writable memory of exactly this size; its bytes are anything.

        Args:
            num_bytes: size.
            aligned_at: the position in it whose address is a multiple of `ALIGNMENT_BYTES`.

        Raises:
            MemoryError: when there is not so much.
        """
        self._collect()
        start = -aligned_at % ALIGNMENT_BYTES
        block = self._idle_block(start + num_bytes)
        if block is None:
            block = _new_block(_rounded(start + num_bytes))
        # Everything that is made of the returned view refers to this array, and not to the block.
        array = np.frombuffer(block, np.uint8)
        weakref.finalize(array, self._returned.append, block).atexit = False
        return array.data[start : start + num_bytes]

    def _idle_block(self, num_bytes: int) -> memoryview | None:
        place = bisect_left(self._idle, num_bytes, key=_size_of)
        if place == len(self._idle) or self._idle[place].nbytes > _MAX_WASTE * _rounded(num_bytes):
            return None
        block = self._idle.pop(place)
        self._idle_bytes -= block.nbytes
        return block

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            insort(self._idle, block, key=_size_of)
            self._idle_bytes += block.nbytes
            while self._idle_bytes > self._max_idle_bytes:
                # The smallest ones serve the fewest answers.
                self._idle_bytes -= self._idle.pop(0).nbytes


def _new_block(num_bytes: int) -> memoryview:
    try:
        # A mapping begins at a page.
        return memoryview(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryError(str(error)) from error


def _rounded(num_bytes: int) -> int:
    """Return a size that answers of similar sizes share: at most an eighth larger."""
    step = 1 << max(12, num_bytes.bit_length() - 4)
    return -(-num_bytes // step) * step
