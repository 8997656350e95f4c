"""The time limit of one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from latentwire_service.engine.errors import DeadlineExceededError


class Deadline:
    """Starts when it is made, on the running event loop.

    Args:
        timeout_s: seconds until it expires; None: it never does.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        now = asyncio.get_running_loop().time()
        self._at = None if timeout_s is None else now + timeout_s

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancel the block when the deadline expires.

        Raises:
            DeadlineExceededError: the deadline expired.
        """
        timeout = asyncio.timeout_at(self._at)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            # A TimeoutError of the block's own says nothing about this deadline.
            if self._timeout_s is None or not timeout.expired():
                raise
            raise DeadlineExceededError(self._timeout_s) from error
