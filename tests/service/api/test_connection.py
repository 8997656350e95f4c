"""Misbehaving connections on a real socket: each ends, and none blocks the others."""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Response

from latentwire_service.api.connection import linger, stall
from latentwire_service.server import http_config
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY, plan_of, post

pytestmark = pytest.mark.backends("fake")

HEAD = b"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.3)
    monkeypatch.setattr(stall, "MAX_STALL_S", 0.5)


def connect(live: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), TIMEOUT_S)


def request_bytes(**body: Any) -> bytes:
    # Its plan is longer than any test needs.
    content = json.dumps(GREEDY | {"task": "Wash the mug 4"} | body).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize("is_sending", [True, False])
@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /plan_latent", 413),
        (b"POST /nowhere", 404),
        (b"PUT /plan_latent", 405),
        (b"GET /health", 200),
        (b"GET /info", 401),
    ],
)
def test_a_client_that_is_answered_cannot_keep_sending(
    start: Callable[..., LiveServer], request_line: bytes, status: int, is_sending: bool
) -> None:
    live = start(api_key=("a-key",), max_body_bytes=100_000)
    key = b"" if status == 401 else b"Authorization: Bearer a-key\r\n"
    with connect(live) as connection:
        connection.sendall(
            request_line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"%bTransfer-Encoding: chunked\r\n\r\n" % key + CHUNK * 2
        )
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close\r\n" in received.lower()
        # Sending must fail at some point; a service that never stops reading fails the test.
        with suppress(ConnectionError):
            while is_sending:
                connection.sendall(CHUNK)
        read_all(connection)


def test_a_client_that_sends_its_whole_body_sees_the_answer(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long the client takes on a busy machine.
    monkeypatch.setattr(linger, "LINGER_S", TIMEOUT_S)
    with connect(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n" + CHUNKED + CHUNK)
        assert connection.recv(10) == b"HTTP/1.1 4"
        connection.sendall(CHUNK * 20 + b"0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert b'"not-found"' in read_all(connection)


@pytest.mark.parametrize("extra", [b"\r\n", request_bytes(), b"GET /health HTTP/1.1\r\n"])
@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_disconnect_is_noticed_after_bytes_that_follow_a_request(
    start: Callable[..., LiveServer],
    gate: Gate,
    extra: bytes,
    is_at_once: bool,
) -> None:
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    with connect(live) as connection:
        connection.sendall(request_bytes(max_new_tokens=400) + (extra if is_at_once else b""))
        assert gate.is_reached.wait(TIMEOUT_S)
        connection.sendall(b"" if is_at_once else extra)
    assert live.watch.cancelled.wait(TIMEOUT_S)
    gate.may_pass.set()
    assert plan_of(post(live, GREEDY))
    assert live.metric("latentwire_generation_tokens_total") < 20


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    ahead = b"".join(request_bytes(max_new_tokens=count) for count in (300, 2, 3))
    last = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(ahead[:-5])
        connection.sendall(ahead[-5:] + last)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 4
    counts = [received.index(b'"completion_tokens":%d,' % count) for count in (300, 2, 3)]
    assert counts == sorted(counts)
    assert received.endswith(b'{"status":"ok"}')


def test_pipelined_bytes_are_bounded(start: Callable[..., LiveServer], gate: Gate) -> None:
    live = start(Faults(before_decode=gate)).wait_ready()
    with connect(live) as connection:
        connection.sendall(request_bytes(max_new_tokens=400))
        assert gate.is_reached.wait(TIMEOUT_S)
        with suppress(ConnectionError):
            while True:
                connection.sendall(b"x" * 65536)
        assert live.watch.cancelled.wait(TIMEOUT_S)
        gate.may_pass.set()


@pytest.mark.parametrize(("num_bytes", "status"), [(15_000, 200), (17_000, 400)])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_head_that_arrives_at_once_has_the_same_limit(
    server: LiveServer, num_bytes: int, status: int, is_first: bool
) -> None:
    before = b"" if is_first else b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(
            before + b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-Long: "
            b"%b\r\n\r\n" % (b"x" * num_bytes)
        )
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert len(answers) == (1 if is_first else 2)
    assert answers[-1].startswith(b"%d " % status)


def test_invalid_bytes_after_a_refusal_are_no_error_of_the_service(
    start: Callable[..., LiveServer],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # However long the client takes on a busy machine.
    monkeypatch.setattr(linger, "LINGER_S", TIMEOUT_S)
    # The gate keeps the stream unfinished until its request is cancelled.
    live = start(Faults(before_decode=gate)).wait_ready()
    with connect(live) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n" + CHUNKED)
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"no chunk\r\n" * 10)
        read_all(connection)
    with connect(live) as connection:
        connection.sendall(
            b"GET /plan_latent?task=x&stream=true&max_new_tokens=400 HTTP/1.1\r\n"
            b"Host: 127.0.0.1\r\n" + CHUNKED
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"no chunk\r\n" * 10)
        read_all(connection)
    assert live.watch.cancelled.wait(TIMEOUT_S)
    gate.may_pass.set()
    for method in (b"HEAD", b"POST"):
        for _ in range(20):
            with connect(live) as connection:
                connection.sendall(method + b" /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\n" + CHUNKED)
    assert plan_of(post(live, GREEDY))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_request_whose_body_is_not_valid_http_is_aborted(
    start: Callable[..., LiveServer],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 10 * TIMEOUT_S)
    live = start(Faults(before_decode=gate)).wait_ready()
    with connect(live) as connection:
        connection.sendall(
            b"GET /plan_latent?task=x&max_new_tokens=400 HTTP/1.1\r\nHost: 127.0.0.1\r\n" + CHUNKED
        )
        assert gate.is_reached.wait(TIMEOUT_S)
        connection.sendall(b"no chunk\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert live.watch.cancelled.wait(TIMEOUT_S)
        gate.may_pass.set()


@pytest.mark.parametrize("stream", [True, False])
def test_a_stalled_reader_is_disconnected(start: Callable[..., LiveServer], stream: bool) -> None:
    live = start(max_slots=1).wait_ready()
    live.shrink_send_buffers()
    with slow_reader(live.port, request_bytes(max_new_tokens=400, stream=stream)) as reader:
        assert is_cut(reader)


class SlowReads:
    """Reads slowly. The service looks for a stall only after some reads, however long they take."""

    _PER_CHECK = 5

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._num_reads = 0
        self._num_checked = 0
        self._check = stall.StallWatch._check
        monkeypatch.setattr(stall.StallWatch, "_check", lambda watch: self._on_time(watch))

    def _on_time(self, watch: stall.StallWatch) -> None:
        """Take the place of the service's own check."""
        if watch.has_unsent and self._num_reads < self._num_checked + self._PER_CHECK:
            watch._timer = watch._loop.call_later(0.01, watch._check)
            return
        self._num_checked = self._num_reads
        self._check(watch)

    def all_of(self, reader: socket.socket, num_bytes: int, pause_s: float) -> bytes:
        """Read to the end, so many bytes at a time."""
        received = b""
        while piece := reader.recv(num_bytes):
            received += piece
            self._num_reads += 1
            time.sleep(pause_s)
        return received


@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_reader_is_not_disconnected(
    start: Callable[..., LiveServer], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowReads(monkeypatch)
    live = start(max_slots=1).wait_ready()
    request = request_bytes(max_new_tokens=400, stream=stream).replace(
        b"Host", b"Connection: close\r\nHost", 1
    )
    live.shrink_send_buffers()
    with slow_reader(live.port, request) as reader:
        # With one slot, this answer means that the whole other one waits to be read.
        assert plan_of(post(live, GREEDY))
        received = slow.all_of(reader, 8192, pause_s=0.1)
    assert (b"event: done" if stream else b'"completion_tokens":400') in received


@contextmanager
def serving(num_bytes: int) -> Iterator[int]:
    """Serve an answer of `num_bytes` at /, and yield the port."""
    app = FastAPI()

    @app.get("/")
    def answer() -> Response:
        return Response(b"x" * num_bytes)

    server = uvicorn.Server(http_config(app, 16384))
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        # The kernel's buffer must not hold the whole answer.
        if num_bytes < 100_000:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        running = pool.submit(server.run, [listening])
        yield listening.getsockname()[1]
        server.should_exit = True
        running.result(TIMEOUT_S)


@pytest.mark.slow
def test_bytes_in_the_kernels_buffer_do_not_hide_a_slow_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowReads(monkeypatch)
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    with serving(3_000_000) as port, slow_reader(port, request) as reader:
        received = slow.all_of(reader, 30_000, pause_s=0.02)
    assert len(received) > 3_000_000


def test_a_short_unread_rest_does_not_keep_a_connection_open() -> None:
    # The beginning of another request must not keep the connection open.
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nG"
    with serving(60_000) as port, slow_reader(port, request) as reader:
        assert is_cut(reader)


def slow_reader(port: int, request: bytes) -> socket.socket:
    """Send a request over a connection that accepts little of the answer before it is read."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(TIMEOUT_S)
    reader.connect(("127.0.0.1", port))
    reader.sendall(request)
    return reader


def is_cut(reader: socket.socket) -> bool:
    """Wait for the end of the connection without reading."""
    end = select.poll()
    end.register(reader, select.POLLERR)
    return bool(end.poll(TIMEOUT_S * 1000))
