"""OpenTelemetry traces: a span per request, and within it the parts of its completion.

Needs the extra `tracing` and an endpoint in the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`); the
other `OTEL_*` variables work as OpenTelemetry documents them. Spans hold no task, plan, query, key,
host name or address. This module knows no web framework: `api/trace_middleware.py` has that part.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latentwire_service.engine.backend import Completion

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXTRA = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
# How long sending the last spans may delay the end of the process.
_CLOSE_TIMEOUT_S = 5.0


@dataclass(slots=True)
class RequestOutcome:
    """Facts about a request for its span. Set them before the span ends.

    Attributes:
        route: the path of the route, never the path of the request, so that names stay few.
        status: the HTTP status.
        request_id: the `X-Request-Id`.
        plan_id: the answer id; empty for an answer without a plan.
    """

    route: str = "other"
    status: int = 500
    request_id: str = ""
    plan_id: str = ""


class Tracing:
    """Makes spans.

    Args:
        processor: receives the finished spans.
        version: version of the service.
    """

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create()
        # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win.
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            own = {"service.name": "latentwire", "service.version": version}
            resource = resource.merge(Resource(own))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("latentwire", version)
        self._extract = propagate.extract
        self._trace = trace

    def close(self) -> None:
        """Send the remaining spans. Gives up after some seconds, because a collector may hang."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
        if closing.is_alive():
            logger.warning("the last spans may be lost: no answer from the collector")

    @contextmanager
    def request_span(self, method: str, headers: Mapping[str, str]) -> Iterator[RequestOutcome]:
        """Run the block in a span of one request.

        Args:
            method: the HTTP method, one of a few.
            headers: headers of the request, by lower-case name; a `traceparent` makes the span a
                child of the caller's.
        """
        outcome = RequestOutcome()
        with self._tracer.start_as_current_span(
            method,
            context=self._extract(headers),
            kind=self._trace.SpanKind.SERVER,
            # An exception's text could hold the request's input.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield outcome
            finally:
                span.update_name(f"{method} {outcome.route}")
                attributes: dict[str, str | int] = {
                    "http.request.method": method,
                    "http.route": outcome.route,
                    "http.response.status_code": outcome.status,
                    "latentwire.request_id": outcome.request_id,
                }
                if outcome.plan_id:
                    attributes["latentwire.plan_id"] = outcome.plan_id
                span.set_attributes(attributes)
                if outcome.status >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)

    def note_completion(self, completion: Completion, model: str) -> None:
        """Describe a finished completion in the current span, and add a span for each part."""
        self._trace.get_current_span().set_attributes(
            {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.response.model": model,
                "gen_ai.usage.input_tokens": completion.prompt_tokens,
                "gen_ai.usage.output_tokens": len(completion.token_ids),
                "gen_ai.response.finish_reasons": [completion.finish_reason.value],
                "latentwire.latent_rows": len(completion.hidden_state),
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
    """Log lost spans ourselves, because the exporter's own records hold a host name."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Reporting(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                logger.warning("%d spans are lost: the collector did not accept them", len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL + 1)
    return Reporting()


def open_tracing(environ: Mapping[str, str], version: str) -> Tracing | None:
    """Open tracing if the environment names an endpoint; else return None.

    Args:
        environ: environment variables of this process; OpenTelemetry reads them too.
        version: version of the service.
    """
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or not any(environ.get(name) for name in _ENDPOINTS):
        return None
    if not all(_is_installed(name) for name in _EXTRA):
        logger.warning("no traces: pip install 'latentwire[tracing]'")
        return None
    # OpenTelemetry raises whatever it likes for a value that it cannot use.
    try:
        return _open(version)
    except Exception as error:
        logger.error("no traces: OpenTelemetry cannot use %s: %s", _suspects(environ, error), error)
        return None


def _open(version: str) -> Tracing:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Tracing(BatchSpanProcessor(_reporting(OTLPSpanExporter())), version)


def _suspects(environ: Mapping[str, str], error: Exception) -> str:
    """Name the variables whose value the error quotes, or else all that are set."""
    given = {name: value for name, value in environ.items() if name.startswith("OTEL_") and value}
    quoted = [name for name, value in given.items() if value in str(error)]
    return ", ".join(sorted(quoted or given))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
