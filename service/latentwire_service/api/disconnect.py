"""Work for a client that may disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive

ResultT = TypeVar("ResultT")

# nginx's status. The client is gone and cannot read it: it is for the log and the metrics.
CLIENT_CLOSED_REQUEST = 499


async def until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, ResultT]
) -> ResultT | Response:
    """Await work, but cancel it when the client disconnects, so that its slot serves another.

    Returns:
        the result of the work, or a response with status 499 if the client is gone.

    Raises:
        HTTPException: the request body exceeded its limit.
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
            # After this function returns, the caller may close what the work uses.
            await asyncio.wait({working})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
