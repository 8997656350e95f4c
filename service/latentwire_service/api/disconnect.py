"""Work for a client that may go."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive

ResultT = TypeVar("ResultT")

# nginx's. The caller is gone and reads no status; this one is for the log and the metrics.
CLIENT_CLOSED_REQUEST = 499


async def until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, ResultT]
) -> ResultT | Response:
    """Await work, but give it up when the client goes: its slot serves somebody else.

    Returns:
        what the work does, or, when the client is gone, an answer that says so.

    Raises:
        HTTPException: there was no going, but a body that is larger than it may be.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        watching.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            # What it uses may be closed from here on.
            await asyncio.wait({working})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
