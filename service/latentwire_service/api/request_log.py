"""One log line, one metric and one id per request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire.constants import REQUEST_ID_HEADER, REQUEST_ID_PATTERN
from latentwire_service.api.request_scope import (
    key_name_of,
    method_of,
    outcome_of,
    plan_id_of,
    route_of,
)
from latentwire_service.telemetry.logs import request_id

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)


class RequestLog:
    """ASGI middleware that gives each request an id and logs its route and status.

    The log line holds the matched route, never the path or the query that the client sent.

    Args:
        app: the next ASGI app.
        observe: receives the route and the status of each response.
    """

    def __init__(self, app: ASGIApp, observe: Callable[[str, int], None]) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and log its status."""
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
            status = outcome_of(scope, status)
            self._observe(route_of(scope), status)
            _log(scope, status, round((time.monotonic() - started) * 1e3, 1))
            request_id.reset(token)


def _log(scope: Scope, status: int, duration_ms: float) -> None:
    method, route, plan_id = method_of(scope), route_of(scope), plan_id_of(scope)
    logger.log(
        _level(route, status),
        "%s %s %d %.1f ms%s",
        method,
        route,
        status,
        duration_ms,
        f" {plan_id}" if plan_id else "",
        extra={
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": duration_ms,
            "caller": key_name_of(scope),
            "plan_id": plan_id,
        },
    )


def _level(route: str, status: int) -> int:
    """Return the level of a request's line.

    Probes and scrapes arrive every few seconds. What changes the answer of `/ready` has its own
    line.
    """
    is_routine = route == "/ready" or (route in ("/health", "/metrics") and status == 200)
    return logging.DEBUG if is_routine else logging.INFO


def _request_id(scope: Scope) -> str:
    """Return the client's request id if it fits in a log line, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
