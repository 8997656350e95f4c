"""The FastAPI app: routes, error responses and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.cors import CORSMiddleware

from latentwire.constants import REQUEST_ID_HEADER
from latentwire.protocol import InfoResponse
from latentwire_service.api import error_handlers
from latentwire_service.api.access_policy import Policy
from latentwire_service.api.docs_page import CONTENT_SECURITY_POLICY, docs_page
from latentwire_service.api.guards import AllowedHosts, BodyLimit, KeyCheck, open_paths
from latentwire_service.api.head_requests import HeadRequests
from latentwire_service.api.openai.routes import create_openai_router
from latentwire_service.api.openapi_examples import DescribedApp
from latentwire_service.api.request_log import RequestLog
from latentwire_service.api.routes import create_router
from latentwire_service.api.trace_middleware import RequestSpans
from latentwire_service.engine.backend import BackendInfo
from latentwire_service.engine.errors import EngineUnavailableError
from latentwire_service.model_service import ModelService
from latentwire_service.service_info import TEXT_BODY_BYTES, body_limit
from latentwire_service.telemetry.metrics import Metrics
from latentwire_service.telemetry.tracing import Tracing


def create_app(
    service: ModelService,
    metrics: Metrics,
    policy: Policy,
    version: str,
    describe: Callable[[BackendInfo], InfoResponse],
    tracing: Tracing | None = None,
) -> FastAPI:
    """Build the app. Its start begins to load the model; `/health` answers at once.

    Args:
        service: runs the requests.
        metrics: counts requests and answers `/metrics`.
        policy: what requests must satisfy.
        version: version of the service, for the OpenAPI document.
        describe: makes the answer of `/info` from the loaded model.
        tracing: makes a span of each request; None: no traces.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start_loading()
        yield

    app = DescribedApp(
        title="latentwire",
        summary="A language model's plans, as text and as its own last-layer hidden states.",
        version=version,
        lifespan=lifespan,
        # The framework's own pages load scripts from another host; see `docs_page`.
        docs_url=None,
        redoc_url=None,
        # A redirect would repeat the query, task included, in a response header.
        redirect_slashes=False,
    )
    app.open_paths, app.has_keys = open_paths(policy.is_metrics_public), len(policy.api_keys) > 0

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        headers = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return HTMLResponse(docs_page(app.openapi()), headers=headers)

    max_body_bytes = partial(_body_limit, service, policy.max_body_bytes)
    app.include_router(create_router(service, metrics, describe, policy, max_body_bytes))
    app.include_router(create_openai_router(service, metrics, version, policy, max_body_bytes))
    error_handlers.install(app)
    app.add_middleware(HeadRequests)
    _add_guards(app, policy, max_body_bytes)
    if tracing is not None:
        app.add_middleware(RequestSpans, tracing=tracing)
    app.add_middleware(RequestLog, observe=metrics.observe_response)
    return app


def _body_limit(service: ModelService, fixed: int | None) -> int:
    """Return the most bytes of a body; before the model is loaded, a body has no latents."""
    if fixed is not None:
        return fixed
    try:
        return body_limit(service.info)
    except EngineUnavailableError:
        return TEXT_BODY_BYTES


def _add_guards(app: FastAPI, policy: Policy, max_body_bytes: Callable[[], int]) -> None:
    """Add the middleware that enforces the policy. The one added last sees a request first."""
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes, timeout_s=policy.body_timeout_s)
    app.add_middleware(KeyCheck, keys=policy.api_keys, is_metrics_public=policy.is_metrics_public)
    if policy.cors_origins:
        # Before the key check, because a browser's preflight request carries no key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=policy.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Timeout", REQUEST_ID_HEADER],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After"],
        )
    app.add_middleware(AllowedHosts, allowed=policy.allowed_hosts)
