"""Streams over a real socket: the events, errors within a stream, and freed slots."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire import (
    AsyncClient,
    Client,
    LatentInvalidError,
    NotReadyError,
    PlanStep,
    PromptTooLongError,
)
from latentwire.protocol import StreamDone
from latentwire.sse import Event, EventDecoder
from latentwire_service.api import event_stream
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY
from support.tiny_shape import HIDDEN_SIZE

pytestmark = pytest.mark.backends("fake", "local", "vllm")


@pytest.fixture(scope="module")
def folder(save_tiny: Callable[..., Path], backend: str) -> Path:
    # Without an end token, a request runs as long as a test wants it to.
    return Path("tiny") if backend == "fake" else save_tiny(eos_token_id=None)


class Paces:
    """Lets one decode step pass per release."""

    def __init__(self) -> None:
        self.passes = threading.Semaphore(0)

    def __call__(self) -> None:
        assert self.passes.acquire(timeout=TIMEOUT_S)


def events_of(live: LiveServer, body: dict[str, Any], **params: Any) -> list[Event]:
    answer = live.http.post("/plan_latent", json=body | {"stream": True}, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
    return list(EventDecoder().feed(answer.content))


@pytest.mark.parametrize("k", [None, 0, 2, 50])
@pytest.mark.parametrize("stop", [[], ["e"], ["zzz", "never"]])
def test_a_stream_holds_the_same_plan_as_the_whole_answer(
    server: LiveServer, k: int | None, stop: list[str]
) -> None:
    body: dict[str, Any] = {
        "task": "Wash the mug.",
        "task_id": "t",
        "max_new_tokens": 40,
        "seed": 5,
        "temperature": 1.3,
        "stop": stop,
    }
    with Client(server.url) as client:
        options = {name: value for name, value in body.items() if name != "task"}
        whole = client.plan_latent(body["task"], k=k, **options)
        with client.stream_plan_latent(body["task"], k=k, **options) as stream:
            steps = list(stream)
        streamed = stream.plan
    assert [step.index for step in steps] == list(range(len(whole.token_ids)))
    assert tuple(step.token_id for step in steps) == whole.token_ids == streamed.token_ids
    assert "".join(step.text for step in steps) == whole.plan == streamed.plan
    num_rows = len(whole.hidden_state)
    assert all(step.hidden_row is not None for step in steps[:num_rows])
    assert all(step.hidden_row is None for step in steps[num_rows:])
    np.testing.assert_allclose(streamed.hidden_state, whole.hidden_state, atol=1e-4)
    assert streamed.hidden_state.shape == (num_rows, HIDDEN_SIZE)
    for name in ("model", "task", "task_id", "k", "latent", "finish_reason", "seed", "usage"):
        assert getattr(streamed, name) == getattr(whole, name), name


def test_the_done_event_does_not_repeat_the_steps(server: LiveServer) -> None:
    *steps, done = events_of(server, GREEDY, k=2)
    assert [event.name for event in steps] == ["step"] * 6
    assert done.name == "done"
    read = StreamDone.model_validate_json(done.data)
    assert (read.shape, read.plan) == ((2, HIDDEN_SIZE), None)
    assert not {"task", "token_ids", "hidden_state"} & set(json.loads(done.data))


def test_get_streams_as_well(server: LiveServer) -> None:
    query = GREEDY | {"stream": "true", "do_sample": "false", "k": 1}
    answer = server.http.get("/plan_latent", params=query)
    names = [event.name for event in EventDecoder().feed(answer.content)]
    assert names == ["step"] * 6 + ["done"]


def test_the_async_client_reads_the_same_stream(server: LiveServer) -> None:
    async def collect() -> list[PlanStep]:
        async with AsyncClient(server.url) as client:
            stream = client.stream_plan_latent("Wash the mug.", k=1, seed=3, max_new_tokens=9)
            async with stream:
                steps = [step async for step in stream]
            assert stream.plan.token_ids == tuple(step.token_id for step in steps)
            return steps

    with Client(server.url) as client:
        expected = list(client.stream_plan_latent("Wash the mug.", k=1, seed=3, max_new_tokens=9))
    steps = asyncio.run(collect())
    assert [(s.token_id, s.text) for s in steps] == [(s.token_id, s.text) for s in expected]


def test_each_token_is_sent_when_it_is_generated(start: Callable[..., LiveServer]) -> None:
    paces = Paces()
    live = start(Faults(before_decode=paces)).wait_ready()
    try:
        with Client(live.url) as client:
            stream = client.stream_plan_latent("Wash the mug.", do_sample=False, max_new_tokens=4)
            with stream:
                steps = iter(stream)
                # The first token comes from the prefill: no decode step has been let pass yet.
                assert next(steps).index == 0
                for index in (1, 2, 3):
                    paces.passes.release()
                    assert next(steps).index == index
                assert not list(steps)
    finally:
        paces.passes.release(1000)


def test_a_refusal_before_the_first_token_has_its_own_status(server: LiveServer) -> None:
    answer = server.http.post(
        "/plan_latent", json=GREEDY | {"stream": True, "max_new_tokens": 5000}
    )
    assert answer.status_code == 422
    assert answer.json()["code"] == "prompt-too-long"
    with Client(server.url) as client, pytest.raises(PromptTooLongError):
        list(client.stream_plan_latent("x" * 600))


def test_an_error_after_the_first_byte_is_an_event(
    start: Callable[..., LiveServer], backend: str
) -> None:
    live = start(Faults(has_nan_rows=True)).wait_ready()
    *steps, error = events_of(live, GREEDY)
    # The engine refuses the second row when it comes; the fake checks its rows at the end.
    assert [step.name for step in steps] == ["step"] * (6 if backend == "fake" else 1)
    assert error.name == "error"
    body = json.loads(error.data)
    assert (body["code"], body["status"]) == ("latent-invalid", 500)
    with Client(live.url) as client:
        with pytest.raises(LatentInvalidError) as caught:
            list(client.stream_plan_latent(**GREEDY))
        assert (caught.value.request_id or "").startswith("req-")
        with pytest.raises(LatentInvalidError) as caught:
            list(client.stream_plan_latent(**GREEDY, request_id="mine"))
        assert caught.value.request_id == "mine"
    live.wait_metric(3, "latentwire_stream_errors_total", code="latent-invalid")


def test_a_lost_engine_ends_its_streams_with_an_error_event(
    start: Callable[..., LiveServer],
) -> None:
    def break_down() -> None:
        raise RuntimeError("device lost at /dev/secret/path")

    live = start(Faults(before_decode=break_down)).wait_ready()
    with Client(live.url) as client:
        with pytest.raises(NotReadyError, match="the engine failed") as caught:
            list(client.stream_plan_latent(**GREEDY))
        assert caught.value.body.engine_failed
    assert live.failed.wait(TIMEOUT_S)


def test_an_unexpected_error_in_a_stream_shows_only_an_id(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> bytes:
        raise RuntimeError("cannot open /home/somebody/x")

    monkeypatch.setattr(event_stream, "render_done", break_down)
    *_, error = events_of(server, GREEDY)
    assert json.loads(error.data)["code"] == "internal"
    assert b"somebody" not in error.data


def test_a_stream_whose_reader_disconnects_frees_its_slot(
    start: Callable[..., LiveServer],
) -> None:
    paces = Paces()
    live = start(Faults(before_decode=paces), max_slots=1).wait_ready()
    with Client(live.url) as client:
        stream = client.stream_plan_latent("Wash the mug.", do_sample=False, max_new_tokens=300)
        assert next(iter(stream)).index == 0
        stream.close()
        assert live.watch.cancelled.wait(TIMEOUT_S)
        paces.passes.release(400)
        assert len(client.plan_latent("x", max_new_tokens=3).token_ids) == 3
    assert live.metric("latentwire_generation_tokens_total") < 20


def test_a_waiting_stream_whose_reader_disconnects_leaves_the_queue(
    start: Callable[..., LiveServer],
) -> None:
    held = Gate()
    live = start(Faults(before_decode=held), max_slots=1).wait_ready()
    with httpx.stream("POST", f"{live.url}/plan_latent", json=GREEDY | {"stream": True}):
        assert held.is_reached.wait(TIMEOUT_S)
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            body = json.dumps(GREEDY | {"stream": True}).encode()
            connection.sendall(
                b"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            live.wait_metric(1, "latentwire_requests_waiting")
        assert live.watch.cancelled.wait(TIMEOUT_S)
        # Counted before the first stream ends, whose reader leaves it early, too.
        live.wait_metric(1, "latentwire_requests_total", path="/plan_latent", status="499")
        held.may_pass.set()


def test_a_reader_that_exceeds_the_body_limit_is_disconnected(
    start: Callable[..., LiveServer],
) -> None:
    """The body of a GET is not used, but its size is limited."""
    paces = Paces()
    live = start(Faults(before_decode=paces), max_slots=1, max_body_bytes=1024).wait_ready()
    with socket.create_connection(("127.0.0.1", live.port), TIMEOUT_S) as connection:
        connection.sendall(
            b"GET /plan_latent?task=x&stream=true&max_new_tokens=300 HTTP/1.1\r\n"
            b"Host: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
        )
        received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"x" * 2000)
        assert live.watch.cancelled.wait(TIMEOUT_S)
        paces.passes.release(400)
        # What is left unread on the other side makes the end a reset.
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
    assert b"event: done" not in received
    with Client(live.url) as client:
        assert len(client.plan_latent("x", max_new_tokens=3).token_ids) == 3


def test_a_reader_that_reads_nothing_does_not_delay_the_engine(
    start: Callable[..., LiveServer],
) -> None:
    live = start(max_slots=1).wait_ready()
    body = json.dumps(GREEDY | {"stream": True, "max_new_tokens": 400}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.connect(("127.0.0.1", live.port))
        slow.sendall(
            b"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        # With one slot, an answer to the next request means that the slow one is through.
        with Client(live.url) as client:
            assert len(client.plan_latent("x", max_new_tokens=2).token_ids) == 2


def test_a_tokenizer_error_fails_only_its_request(
    start: Callable[..., LiveServer],
) -> None:
    is_broken = threading.Event()
    live = start(Faults(is_tokenizer_broken=is_broken.is_set)).wait_ready()
    is_broken.set()
    broken = live.http.post("/plan_latent", json=GREEDY)
    assert (broken.status_code, broken.json()["code"]) == (500, "internal")
    is_broken.clear()
    assert live.http.post("/plan_latent", json=GREEDY).status_code == 200
    assert not live.failed.is_set()


def test_draining_finishes_running_streams(start: Callable[..., LiveServer]) -> None:
    paces = Paces()
    live = start(Faults(before_decode=paces)).wait_ready()
    with Client(live.url, max_retries=0) as client:
        stream = client.stream_plan_latent("Wash the mug.", do_sample=False, max_new_tokens=5)
        steps = iter(stream)
        next(steps)
        draining = threading.Thread(target=live.service.drain)
        draining.start()
        paces.passes.release(100)
        assert len(list(steps)) == 4
        draining.join(TIMEOUT_S)
        with pytest.raises(NotReadyError):
            client.plan_latent("y")
