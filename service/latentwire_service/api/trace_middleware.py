"""ASGI middleware that makes a span of each request."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire_service.api.request_scope import method_of, outcome_of, plan_id_of, route_of
from latentwire_service.telemetry.logs import request_id
from latentwire_service.telemetry.tracing import Tracing

# Probes and scrapes arrive every few seconds; their spans would bury the others.
_UNTRACED_PATHS = frozenset({"/health", "/ready", "/metrics"})


class RequestSpans:
    """Runs each request in a span, a child of the caller's span if the request names one.

    Args:
        app: the next ASGI app.
        tracing: makes the spans.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and describe its answer in the span."""
        if scope["type"] != "http" or scope["path"] in _UNTRACED_PATHS:
            await self._app(scope, receive, send)
            return
        headers = dict(Headers(scope=scope))
        with self._tracing.request_span(method_of(scope), headers) as outcome:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    outcome.status = message["status"]
                await send(message)

            try:
                await self._app(scope, receive, noted)
            finally:
                outcome.status = outcome_of(scope, outcome.status)
                outcome.route = route_of(scope)
                outcome.request_id = request_id.get() or ""
                outcome.plan_id = plan_id_of(scope)
