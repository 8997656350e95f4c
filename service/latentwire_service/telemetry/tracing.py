"""OpenTelemetry traces: a span per request, and in it the time it waited, read and generated.

Needs the extra `tracing`, and an endpoint in the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`); the
other `OTEL_*` variables hold as OpenTelemetry documents them. Spans hold no task, plan, query, key,
host name or address.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire_service.api.request_log import method_of
from latentwire_service.engine.request import Completion
from latentwire_service.telemetry.logs import request_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXTRA = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
# How long the last spans may keep a process that ends.
_CLOSE_TIMEOUT_S = 5.0
# Asked for every few seconds by whoever watches the service: traces of it tell nothing.
_UNTRACED_PATHS = frozenset({"/health", "/ready", "/metrics"})


class Tracing:
    """Makes spans.

    Args:
        processor: takes the finished spans.
        version: of the service.
    """

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create()
        # Unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says another.
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            own = {"service.name": "latentwire", "service.version": version}
            resource = resource.merge(Resource(own))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("latentwire", version)
        self._extract = propagate.extract
        self._trace = trace

    def close(self) -> None:
        """Send what is not sent yet, for some seconds at most: a collector may hang."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
        if closing.is_alive():
            logger.warning("the last spans may be lost: no answer from the collector")

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wrap an ASGI app: a span per request, a child of the caller's where it sent one."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in _UNTRACED_PATHS:
                await app(scope, receive, send)
                return
            status = 500

            async def noted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            with self._tracer.start_as_current_span(
                method_of(scope),
                context=self._extract(dict(Headers(scope=scope))),
                kind=self._trace.SpanKind.SERVER,
                # Its text could hold the input that it is about.
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    await app(scope, receive, noted)
                finally:
                    route = getattr(scope.get("route"), "path", "other")
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attributes(
                        {
                            "http.request.method": method_of(scope),
                            "http.route": route,
                            "http.response.status_code": status,
                            "latentwire.request_id": request_id.get() or "",
                        }
                    )
                    if status >= 500:
                        span.set_status(self._trace.StatusCode.ERROR)

        return traced

    def note_completion(self, completion: Completion, model: str) -> None:
        """Add what a finished request did to the span of the task that awaited it."""
        self._trace.get_current_span().set_attributes(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.response.model": model,
                "gen_ai.usage.input_tokens": completion.prompt_tokens,
                "gen_ai.usage.output_tokens": len(completion.token_ids),
                "gen_ai.response.finish_reasons": [completion.finish_reason.value],
                "latentwire.latent_steps": len(completion.hidden_state),
            }
        )
        parts = {
            "queue": completion.queue_s,
            "prefill": completion.prefill_s,
            "decode": completion.decode_s,
        }
        at_ns = time.time_ns() - round(sum(parts.values()) * 1e9)
        for name, duration_s in parts.items():
            span = self._tracer.start_span(name, start_time=at_ns)
            at_ns += round(duration_s * 1e9)
            span.end(at_ns)


def _reporting(exporter: SpanExporter) -> SpanExporter:
    """Have this log say which spans were lost; what the exporter says holds a host name."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Reporting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                logger.warning("%d spans are lost: the collector did not take them", len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL + 1)
    return Reporting()


def open_tracing(environ: Mapping[str, str], version: str) -> Tracing | None:
    """Return what the environment asks for; None where it asks for nothing.

    Args:
        environ: of this process; OpenTelemetry reads it, too.
        version: of the service.
    """
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or not any(environ.get(name) for name in _ENDPOINTS):
        return None
    if not all(_is_installed(name) for name in _EXTRA):
        logger.warning("no traces: pip install 'latentwire[tracing]'")
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Tracing(BatchSpanProcessor(_reporting(OTLPSpanExporter())), version)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
