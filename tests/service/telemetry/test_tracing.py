"""Traces sent to a collector on a real socket and read with OpenTelemetry's definitions."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from latentwire import Client
from latentwire_service.telemetry.tracing import open_tracing
from support.child import TIMEOUT_S, Child
from support.processes import fake_service
from support.tiny_models import llama_config, save_model

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SECRET = "Fetch-the-secret-kettle"


class Collector:
    """Accepts OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                collector.bodies.append(self.rfile.read(length))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


def attributes(span: Span) -> dict[str, object]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


def waiting(seconds: float, of: str = "support.processes.fake_service", run: str = "run") -> str:
    """A program that serves, and that waits so long for the collector before it ends.

    Its backend has no model, unless another module serves.
    """
    return f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from latentwire_service.telemetry import tracing
from {of} import {run} as run

tracing._CLOSE_TIMEOUT_S = {seconds}
sys.exit(run(sys.argv[1:]))
"""


def serve_and_plan(
    *command: str, model: str = "tiny", **environment: str
) -> tuple[Child, list[str]]:
    """Serve a plan, a streamed one, a refusal and a probe, then drain.

    Without a command, the backend has no model. Returns the process and the ids of both answers.
    """
    # Uncompressed, so that the test would find a forbidden text.
    environment |= {"OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    command = command or fake_service.COMMAND
    flags = ["--model", model, "--port", "0", "--threads", "1"]
    child = Child(*flags, command=command, **environment)
    try:
        with Client(child.url) as client:
            client.wait_ready(TIMEOUT_S)
            stream = client.stream_plan_latent(SECRET, max_new_tokens=3, do_sample=False)
            assert len(list(stream)) == 3
            streamed_id = stream.plan.id
        with httpx.Client(base_url=child.url, timeout=TIMEOUT_S) as http:
            query: dict[str, Any] = {"task": SECRET, "max_new_tokens": 5, "k": 2}
            headers = {"traceparent": TRACEPARENT, "X-Request-Id": "mine"}
            plan_id = http.get("/plan_latent", params=query, headers=headers).json()["id"]
            assert http.post("/plan_latent", json={"task": SECRET, "x": 1}).status_code == 422
        child.signal()
        assert child.wait() == 0, child.output
    finally:
        child.close()
    return child, [plan_id, streamed_id]


@pytest.mark.slow
def test_a_request_is_a_span_with_its_parts_and_without_its_text(
    tmp_path: Path, collector: Collector
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(eos_token_id=None))
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    command = ("-c", waiting(TIMEOUT_S, "latentwire_service.__main__", "main"))
    plan_id, streamed_id = serve_and_plan(*command, model=str(folder), **endpoint)[1]
    servers = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    names = sorted(span.name for span in servers)
    assert names == ["GET /plan_latent", "POST /plan_latent", "POST /plan_latent"]
    (plan_span,) = (span for span in servers if span.trace_id.hex() == TRACE_ID)
    assert plan_span.parent_span_id.hex() == TRACEPARENT.split("-")[2]
    noted = attributes(plan_span)
    assert noted["http.response.status_code"] == 200
    assert noted["latentwire.request_id"] == "mine"
    assert noted["latentwire.plan_id"] == plan_id
    assert (noted["gen_ai.usage.output_tokens"], noted["latentwire.latent_rows"]) == (5, 2)
    parts = [span for span in collector.spans if span.parent_span_id == plan_span.span_id]
    parts.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in parts] == ["queue", "prefill", "decode"]
    for earlier, later in zip(parts, parts[1:], strict=False):
        assert earlier.start_time_unix_nano <= earlier.end_time_unix_nano
        assert earlier.end_time_unix_nano == later.start_time_unix_nano
    assert plan_span.start_time_unix_nano <= parts[0].start_time_unix_nano + 50_000_000
    assert parts[-1].end_time_unix_nano <= plan_span.end_time_unix_nano
    streamed = [s for s in servers if attributes(s).get("gen_ai.usage.output_tokens") == 3]
    assert [attributes(span)["latentwire.plan_id"] for span in streamed] == [streamed_id]
    # A client error is not an error of the service.
    assert all(span.status.code != Status.STATUS_CODE_ERROR for span in servers)
    sent = b"".join(collector.bodies)
    assert SECRET.encode() not in sent
    assert b"127.0.0.1" not in sent
    (resource,) = {
        request.resource_spans[0].resource.SerializeToString() for request in collector.requests
    }
    assert b"latentwire" in resource
    assert b"host.name" not in resource


@pytest.mark.slow
def test_nothing_is_sent_without_an_endpoint_in_the_environment(collector: Collector) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    serve_and_plan(**endpoint, OTEL_SDK_DISABLED="true")
    assert collector.bodies == []
    assert open_tracing({}, "0") is None


@pytest.mark.slow
@pytest.mark.parametrize("is_listening", [True, False])
def test_a_collector_that_does_not_answer_delays_nothing(is_listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if is_listening:
            silent.listen()
        port = silent.getsockname()[1]
        # Far longer than the test may take, so waiting for the exporter's own limit fails it.
        limits = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1000", "OTEL_BSP_SCHEDULE_DELAY": "100000"}
        endpoint = f"http://127.0.0.1:{port}"
        limits["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        child, _ = serve_and_plan("-c", waiting(0.5), **limits)
    assert "no answer from the collector" in child.output
    # The only address in the log is the service's own.
    assert child.output.count("127.0.0.1") == 1
    assert str(port) not in child.output


@pytest.mark.slow
def test_refused_spans_are_reported(collector: Collector) -> None:
    collector.status = 400
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    child, _ = serve_and_plan("-c", waiting(TIMEOUT_S), **endpoint)
    assert "spans are lost: the collector did not accept them" in child.output
    assert child.output.count("127.0.0.1") == 1
    assert collector.url not in child.output


def test_without_the_extra_a_warning_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "0") is None
    assert "pip install 'latentwire[tracing]'" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no equals sign"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_PROPAGATORS", "pigeon"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b=c,%%%"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "x"),
    ],
)
def test_a_variable_that_opentelemetry_cannot_use_gives_no_traceback(name: str, value: str) -> None:
    code = (
        "import os; from latentwire_service.telemetry.logs import configure_logging; "
        "from latentwire_service.telemetry.tracing import open_tracing; "
        "configure_logging('info'); print(open_tracing(os.environ, '0') is not None, flush=True); "
        "os._exit(0)"
    )
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", name: value}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    if ended.stdout.strip() == "False":
        (line,) = ended.stderr.splitlines()
        assert name in line
