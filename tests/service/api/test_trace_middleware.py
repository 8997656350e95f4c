"""Spans of requests, recorded in memory."""

from __future__ import annotations

import asyncio

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.types import Receive, Scope, Send

from latentwire_service.api.request_scope import set_plan_id
from latentwire_service.api.trace_middleware import RequestSpans
from latentwire_service.telemetry.tracing import Tracing


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    del receive
    set_plan_id(scope, "plan-1")
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def span_of(method: str, path: str) -> ReadableSpan | None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter), "0.0.0")

    async def send() -> None:
        transport = httpx.ASGITransport(RequestSpans(app, tracing))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path)

    asyncio.run(send())
    return next(iter(exporter.get_finished_spans()), None)


def test_a_method_of_the_clients_own_is_in_no_span() -> None:
    span = span_of("SECRET", "/plan_latent")
    assert span is not None
    assert span.name == "other other"
    assert "SECRET" not in span.to_json()


def test_a_span_has_the_answer_id_and_the_status() -> None:
    span = span_of("POST", "/plan_latent")
    assert span is not None
    assert span.attributes is not None
    assert span.attributes["latentwire.plan_id"] == "plan-1"
    assert span.attributes["http.response.status_code"] == 503
    assert not span.status.is_ok


def test_a_probe_makes_no_span() -> None:
    assert span_of("GET", "/ready") is None
