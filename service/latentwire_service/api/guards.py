"""ASGI middleware that refuses requests before a route sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire_service.api.access_policy import ApiKeys, canonical_host
from latentwire_service.api.error_handlers import problem_response
from latentwire_service.api.request_scope import set_caller, set_key_name

_MAX_SHOWN_CHARS = 100
# Orchestrators probe these without a key and by IP address.
PROBES = frozenset({"/health", "/ready"})


# The description of the API is the same for every service.
_DESCRIPTIONS = frozenset({"/docs", "/openapi.json"})


def open_paths(is_metrics_public: bool) -> frozenset[str]:
    """Return the paths that need no API key."""
    return PROBES | _DESCRIPTIONS | ({"/metrics"} if is_metrics_public else set())


class AllowedHosts:
    """Answers 421 to a `Host` header that does not name this service."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str] | None) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if self._allowed is None or scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and canonical_host(_without_port(hosts[0])) in self._allowed:
            await self._app(scope, receive, send)
        else:
            refusal = problem_response(421, _misdirected(hosts))
            await refusal(scope, receive, send)


class KeyCheck:
    """Answers 401 to a request without a valid API key; notes the caller of any other."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, is_metrics_public: bool) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths(is_metrics_public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller: str | None = scope["client"][0] if scope.get("client") else ""
        if len(self._keys) and scope["path"] not in self._open_paths:
            shown = Headers(scope=scope).getlist("authorization")
            caller = self._keys.caller_of(shown[0].encode("latin-1")) if len(shown) == 1 else None
            set_key_name(scope, caller or "")
        if caller is None:
            refusal = problem_response(
                401,
                "an API key is required: Authorization: Bearer KEY",
                {"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)
            return
        set_caller(scope, caller)
        await self._app(scope, receive, send)


class BodyLimit:
    """Stops reading a body that is too large, announced or not, or that arrives too slowly."""

    def __init__(self, app: ASGIApp, max_body_bytes: Callable[[], int], timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that enforces the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        num_bytes, max_bytes = 0, self._max_body_bytes()
        is_complete = False
        deadline = asyncio.get_running_loop().time() + self._timeout_s

        async def counted() -> Message:
            nonlocal num_bytes, is_complete
            try:
                # After the body the only message is the disconnect, which has no deadline.
                async with asyncio.timeout_at(None if is_complete else deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"the request body did not arrive within {self._timeout_s:g} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from None
            num_bytes += len(message.get("body", b""))
            is_complete = is_complete or not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise HTTPException(413, f"the request body exceeds {max_bytes} bytes")
            return message

        return counted


def _misdirected(hosts: list[str]) -> str:
    if len(hosts) != 1:
        return f"the request has {len(hosts)} Host headers instead of one"
    shown = hosts[0][:_MAX_SHOWN_CHARS]
    return f"the Host header is {shown!r}, which --allowed-host does not list"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
