"""One log line, one count and one id per request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire.constants import REQUEST_ID_HEADER, REQUEST_ID_PATTERN
from latentwire_service.api.guards import key_of
from latentwire_service.telemetry.logs import request_id

logger = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


class RequestLog:
    """ASGI middleware: names each request, and notes its route and status, never its query.

    Args:
        app: the rest.
        observe: gets the route and the status of each answer.
    """

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
        own_id = _request_id(scope)
        token = request_id.set(own_id)

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = own_id
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            method = method_of(scope)
            self._observe(route, status)
            took_ms = round((time.monotonic() - started) * 1e3, 1)
            logger.info(
                "%s %s %d %.1f ms",
                method,
                route,
                status,
                took_ms,
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "duration_ms": took_ms,
                    "caller": key_of(scope),
                },
            )
            request_id.reset(token)


def method_of(scope: Scope) -> str:
    """Return the request's method, for the log; a caller may send any text as one."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def _request_id(scope: Scope) -> str:
    """Return the id that the caller gave, if it is fit for a log line, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
