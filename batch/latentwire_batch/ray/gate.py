"""Rows that share a replica with others, and rows that must not. Belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Lets many rows in together, or one group that is alone.

    A group that waits comes before rows that come later, so that it is sent at some time.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._num_inside = 0
        self._num_groups = 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be inside next to others, but next to no group."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._num_groups == 0)
            self._num_inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside while nobody else is."""
        async with self._changed:
            self._num_groups += 1
            await self._changed.wait_for(lambda: self._num_inside == 0)
            self._num_inside += 1
        try:
            yield
        finally:
            async with self._changed:
                self._num_inside -= 1
                self._num_groups -= 1
                self._changed.notify_all()
