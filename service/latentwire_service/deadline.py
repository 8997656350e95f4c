"""The time that one request has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from latentwire_service.engine.errors import DeadlineExceededError


class Deadline:
    """Begins when it is made, on the running event loop.

    Args:
        timeout_s: None: there is no end to it.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        now = asyncio.get_running_loop().time()
        self._at = None if timeout_s is None else now + timeout_s

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancel the block when the time is up.

        Raises:
            DeadlineExceededError: it was.
        """
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError as error:
            raise DeadlineExceededError(self._timeout_s or 0.0) from error
