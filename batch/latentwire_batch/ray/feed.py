"""The rows that wait for replicas: only a few blocks, however long the input is. Imports no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from latentwire_batch.tasks.rows import Row

# Blocks that the driver reads ahead, so that a replica that takes one does not wait for it.
_NUM_AHEAD = 16


class Feed:
    """Blocks of rows between the driver, which reads them in order, and the replicas.

    A block that a replica has taken is kept until it is done, because Ray sends the block again
    when the replica ends. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._blocks: dict[int, Sequence[Row]] = {}
        self._num_given = 0
        self._num_taken = 0
        self._is_closed = False

    @property
    def num_blocks(self) -> int:
        """Blocks in memory."""
        return len(self._blocks)

    async def give(self, number: int, rows: Sequence[Row]) -> bool:
        """Add the next block, and wait until there is room for the one after it.

        Args:
            number: of the block, counted from 0.
            rows: of the block.

        Returns:
            Whether more blocks are wanted.
        """
        async with self._changed:
            self._blocks[number] = rows
            self._num_given = number + 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._is_closed or self._has_room)
        return not self._is_closed

    async def take(self, number: int) -> Sequence[Row]:
        """Return the rows of a block once they are there; none after `drop` and `close`."""
        async with self._changed:
            self._num_taken = max(self._num_taken, number + 1)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._is_closed or number < self._num_given)
        return () if self._is_closed else self._blocks.get(number, ())

    def drop(self, number: int) -> None:
        """Forget the rows of a block."""
        self._blocks.pop(number, None)

    async def close(self) -> None:
        """Let nobody wait any more."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def _has_room(self) -> bool:
        return self._num_given < self._num_taken + _NUM_AHEAD
