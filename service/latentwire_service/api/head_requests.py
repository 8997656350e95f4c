"""HEAD on the paths that answer GET without work: the same status and headers, without a body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Probes use HEAD (`wget --spider`, load balancers). `/plan_latent` is not here: a GET there runs a
# plan, and HEAD must not.
HEAD_PATHS = frozenset(
    {"/health", "/ready", "/info", "/metrics", "/docs", "/openapi.json", "/v1/models"}
)


class HeadRequests:
    """ASGI middleware that passes HEAD on as GET and sends the answer without its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        if not is_head or scope["path"] not in HEAD_PATHS:
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, without_body)
        finally:
            # The log reads the route, which the router notes in the scope that it was given.
            scope.update(inner, method="HEAD")
