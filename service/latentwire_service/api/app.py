"""The FastAPI app: routes, error answers, guards, one log line per request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from latentwire.constants import REQUEST_ID_HEADER
from latentwire_service.api import error_handlers
from latentwire_service.api.access_policy import Policy
from latentwire_service.api.guards import AllowedHosts, BodyLimit, KeyCheck
from latentwire_service.api.request_log import RequestLog
from latentwire_service.api.routes import create_router
from latentwire_service.model_service import Serving
from latentwire_service.telemetry.metrics import Metrics
from latentwire_service.telemetry.tracing import Tracing


def create_app(
    serving: Serving,
    metrics: Metrics,
    policy: Policy,
    version: str,
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the app. Loading starts with it; `/health` answers at once.

    Args:
        serving: the model's life.
        metrics: where answers are counted.
        policy: what requests have to keep to.
        version: of the service, for OpenAPI.
        tracing: makes a span of each request; None: nobody traces.
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
        # An answer that sends elsewhere would repeat the query, task and all, in a header.
        redirect_slashes=False,
    )
    app.include_router(create_router(serving, metrics, policy.request_timeout_s))
    error_handlers.install(app)
    # The last one added is the first one asked.
    app.add_middleware(
        BodyLimit, max_body_bytes=policy.max_body_bytes, timeout_s=policy.body_timeout_s
    )
    app.add_middleware(KeyCheck, keys=policy.api_keys, is_metrics_public=policy.is_metrics_public)
    if policy.cors_origins:
        # Before the keys: a browser's preflight shows none.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=policy.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Timeout", REQUEST_ID_HEADER],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    app.add_middleware(AllowedHosts, allowed=policy.allowed_hosts)
    if tracing is not None:
        app.add_middleware(tracing.middleware)
    app.add_middleware(RequestLog, observe=metrics.observe_response)
    return app
