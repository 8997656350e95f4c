"""Streams that wait, and streams that end without a plan: what the caller and the log see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from latentwire import AsyncClient, Client
from latentwire.sse import EventDecoder
from latentwire_service.api import event_stream
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY, assert_problem, plan_of, post

pytestmark = pytest.mark.backends("fake", "local", "vllm")

STREAM = GREEDY | {"stream": True}


def logged(live: LiveServer, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """Wait for the log line and the metric of a stream that ended with a status."""
    while f"POST /plan_latent {status} " not in caplog.text:
        live.http.get("/health")
    count = live.metric("latentwire_requests_total", path="/plan_latent", status=str(status))
    assert count == 1
    assert live.metric("latentwire_requests_total", path="/plan_latent", status="200") == 0


def test_a_waiting_stream_sends_headers_and_comments(
    start: Callable[..., LiveServer], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "FIRST_ITEM_S", 0.05)
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.05)
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    with live.http.stream("POST", "/plan_latent", json=STREAM):
        assert gate.is_reached.wait(TIMEOUT_S)
        with live.http.stream("POST", "/plan_latent", json=STREAM) as waiting:
            assert waiting.status_code == 200
            chunks = waiting.iter_raw()
            received = b"".join(next(chunks) for _ in range(3))
            assert received == b": waiting\n\n" * 3
            gate.may_pass.set()
            received = b"".join(chunks)
    names = [event.name for event in EventDecoder().feed(received)]
    assert names == ["step"] * 6 + ["done"]


def test_the_client_reads_past_comments(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "FIRST_ITEM_S", 0.0)
    live = start().wait_ready()
    with Client(live.url) as client, client.stream_plan_latent(**GREEDY) as stream:
        assert len(list(stream)) == 6
        assert len(stream.plan.token_ids) == 6


def test_a_reader_that_leaves_a_waiting_stream_frees_its_place(
    start: Callable[..., LiveServer],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(event_stream, "FIRST_ITEM_S", 0.0)
    caplog.set_level(logging.INFO)
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    with live.http.stream("POST", "/plan_latent", json=STREAM) as running:
        assert gate.is_reached.wait(TIMEOUT_S)
        with live.http.stream("POST", "/plan_latent", json=STREAM) as waiting:
            assert waiting.status_code == 200
        assert live.watch.cancelled.wait(TIMEOUT_S)
        logged(live, caplog, 499)
        gate.may_pass.set()
        running.read()
    assert plan_of(post(live, GREEDY))


def test_a_stream_that_is_dropped_without_close_frees_its_slot(
    start: Callable[..., LiveServer], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    with Client(live.url) as client:
        for step in client.stream_plan_latent(**GREEDY):
            assert step.index == 0
            break
        assert live.watch.cancelled.wait(TIMEOUT_S)
        logged(live, caplog, 499)


def test_an_asyncio_stream_that_is_dropped_without_close_frees_its_slot(
    start: Callable[..., LiveServer], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        async with AsyncClient(live.url) as client:
            async for step in client.stream_plan_latent(**GREEDY):
                assert step.index == 0
                break
            assert await asyncio.to_thread(live.watch.cancelled.wait, TIMEOUT_S)

    caplog.set_level(logging.INFO)
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    asyncio.run(leave())
    logged(live, caplog, 499)


def test_a_stream_that_ends_in_an_error_is_logged_with_its_status(
    start: Callable[..., LiveServer],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The stream has begun before the deadline, however long its first token takes.
    monkeypatch.setattr(event_stream, "FIRST_ITEM_S", 0.0)
    caplog.set_level(logging.INFO)
    live = start(Faults(before_decode=gate)).wait_ready()
    headers = {"X-Request-Timeout": "0.5"}
    answer = live.http.post("/plan_latent", json=STREAM, headers=headers)
    assert (answer.status_code, b"event: error" in answer.content) == (200, True)
    logged(live, caplog, 504)


def test_a_stream_of_a_lost_engine_is_logged_as_503(
    start: Callable[..., LiveServer], caplog: pytest.LogCaptureFixture
) -> None:
    def break_down() -> None:
        raise RuntimeError("device lost")

    caplog.set_level(logging.INFO)
    live = start(Faults(before_decode=break_down)).wait_ready()
    assert live.http.post("/plan_latent", json=STREAM).status_code == 200
    logged(live, caplog, 503)


def test_a_refusal_before_the_stream_keeps_its_own_status(
    start: Callable[..., LiveServer],
) -> None:
    live = start().wait_ready()
    assert_problem(post(live, STREAM | {"top_p": 0}), 422, "invalid-request", "top_p")
