"""The FastAPI app: routes, error answers, body limit, one log line per request."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire_service import error_handlers
from latentwire_service.metrics import Metrics
from latentwire_service.routes import create_router
from latentwire_service.serving import Serving

logger = logging.getLogger(__name__)


def create_app(serving: Serving, metrics: Metrics, max_body_bytes: int, version: str) -> FastAPI:
    """Build the app. Loading starts with it; `/health` answers at once.

    Args:
        serving: the model's life.
        metrics: where answers are counted.
        max_body_bytes: larger request bodies are answered 413.
        version: of the service, for OpenAPI.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        serving.start_loading()
        yield

    app = FastAPI(
        title="latentwire",
        summary="Plans as text and as the model's own last-layer hidden states.",
        version=version,
        lifespan=lifespan,
    )
    app.include_router(create_router(serving, metrics))
    error_handlers.install(app)
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    app.add_middleware(AccessLog, observe=metrics.observe_response)
    return app


class BodyLimit:
    """ASGI middleware that stops reading a body at its limit, announced or not."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise HTTPException(413, f"the request body exceeds {self._max_body_bytes} bytes")
            return message

        await self._app(scope, counted if scope["type"] == "http" else receive, send)


class AccessLog:
    """ASGI middleware: one line and one count per answer, by route, never with the query."""

    def __init__(self, app: ASGIApp, observe: Callable[[str, int], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note its status."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._observe(route, status)
            took_ms = (time.monotonic() - started) * 1e3
            logger.info("%s %s %d %.1f ms", scope["method"], route, status, took_ms)
