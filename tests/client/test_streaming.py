"""Both clients' streams against a scripted server, and the events beneath them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latentwire import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidArgumentError,
    PlanLatent,
    PlanStep,
    ProtocolError,
    QueueFullError,
    sse,
)
from latentwire.sse import Event, EventDecoder

WIDTH = 3
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8"}


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def step(index: int, text: str, has_row: bool) -> bytes:
    row = base64.b64encode(np.full(WIDTH, index, "<f4").tobytes()).decode() if has_row else None
    return event("step", {"index": index, "token_id": index + 7, "text": text, "row": row})


def done(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "plan-1",
        "model": "tiny",
        "task_id": None,
        "k": 1,
        "shape": [1, WIDTH],
        "latent": {"model": "tiny"},
        "finish_reason": "stop",
        "seed": 4,
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "latent_rows": 1},
        "timings": {"queue_ms": 0, "prefill_ms": 1, "decode_ms": 2},
    }
    return body | changes


STEPS = step(0, "Fill\u2028", has_row=True) + step(1, " it.", has_row=False)


Collected = tuple[list[PlanStep], PlanLatent]


def collect_sync(url: str, **options: Any) -> Collected:
    with Client(url, sleep=lambda _: None) as client:
        stream = client.stream_plan_latent("Clean", **options)
        steps = list(stream)
        return steps, stream.plan


def collect_async(url: str, **options: Any) -> Collected:
    async def sleep(_: float) -> None: ...

    async def collect() -> Collected:
        async with AsyncClient(url, sleep=sleep) as client:
            stream = client.stream_plan_latent("Clean", **options)
            steps = [step async for step in stream]
            return steps, stream.plan

    return asyncio.run(collect())


@pytest.fixture(params=[collect_sync, collect_async], ids=["sync", "async"])
def collect(request: pytest.FixtureRequest, server: Any) -> Callable[..., Collected]:
    return lambda **options: request.param(server.url, **options)


def test_steps_are_typed_and_concatenate_to_the_plan(
    server: Any, wire: Any, collect: Callable[..., Collected]
) -> None:
    server.script = [wire.Answer(200, STEPS + event("done", done()), HEADERS)]
    steps, plan = collect(k=1, seed=4)
    assert [(s.index, s.token_id, s.text) for s in steps] == [(0, 7, "Fill\u2028"), (1, 8, " it.")]
    assert steps[0].hidden_row is not None
    np.testing.assert_array_equal(steps[0].hidden_row, [0, 0, 0])
    assert steps[1].hidden_row is None
    assert (plan.plan, plan.task, plan.token_ids) == ("Fill\u2028 it.", "Clean", (7, 8))
    assert plan.hidden_state.shape == (1, WIDTH)
    (received,) = server.received
    assert received.json == {"task": "Clean", "task_id": None, "seed": 4, "stream": True}
    assert received.headers["accept"] == "text/event-stream"
    assert "Clean" not in received.path


def test_the_plan_of_the_done_event_wins_over_the_concatenated_texts(
    server: Any, wire: Any, collect: Callable[..., Collected]
) -> None:
    server.script = [wire.Answer(200, STEPS + event("done", done(plan="other")), HEADERS)]
    assert collect(k=1)[1].plan == "other"


def test_a_busy_service_is_retried_before_the_first_event(
    server: Any, wire: Any, collect: Callable[..., Collected]
) -> None:
    busy = wire.json_answer(wire.problem(429, "queue-full"), 429)
    server.script = [busy, wire.Answer(200, STEPS + event("done", done()), HEADERS)]
    assert len(collect(k=1)[0]) == 2
    server.script = [busy]
    with pytest.raises(QueueFullError):
        collect(k=1)


def test_an_error_event_is_raised_and_not_retried(
    server: Any, wire: Any, collect: Callable[..., Collected]
) -> None:
    problem = wire.problem(504, "deadline-exceeded")
    server.script = [wire.Answer(200, STEPS + event("error", problem), HEADERS)]
    with pytest.raises(DeadlineExceededError):
        collect(k=1)
    assert len(server.received) == 1


@pytest.mark.parametrize("missing", [0, 5])
def test_a_stream_that_is_cut_is_a_broken_connection(
    server: Any, wire: Any, collect: Callable[..., Collected], missing: int
) -> None:
    server.script = [wire.Answer(200, STEPS, HEADERS, missing_bytes=missing)]
    with pytest.raises(ConnectionFailedError):
        collect(k=1)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    "body",
    [
        event("step", {"index": 1, "token_id": 1, "text": ""}),
        event("step", {"index": 0}),
        event("step", {"index": 0, "token_id": 1, "text": "", "row": "AAA="}),
        event("step", {"index": 0, "token_id": 1, "text": "", "row": "no base64"}),
        b"event: step\ndata: {\n\n",
        STEPS + event("done", done(shape=[2, WIDTH])),
        STEPS + event("done", done(shape=[1, WIDTH + 1])),
        STEPS + event("done", done(k=2)),
        STEPS + event("done", done(usage={**done()["usage"], "completion_tokens": 3})),
    ],
)
def test_an_event_that_breaks_the_contract_is_a_protocol_error(
    server: Any, wire: Any, collect: Callable[..., Collected], body: bytes
) -> None:
    server.script = [wire.Answer(200, body, HEADERS)]
    with pytest.raises(ProtocolError):
        collect(k=1)


def test_an_answer_without_a_stream_is_a_protocol_error(
    server: Any, wire: Any, collect: Callable[..., Collected]
) -> None:
    server.script = [wire.json_answer(wire.plan_body())]
    with pytest.raises(ProtocolError, match="instead of an event stream"):
        collect()


def test_nothing_is_sent_before_iterating_and_bad_arguments_raise_at_once(server: Any) -> None:
    with Client(server.url) as client:
        client.stream_plan_latent("x").close()
        with pytest.raises(InvalidArgumentError):
            client.stream_plan_latent("x", top_p=2)
        stream = client.stream_plan_latent("x")
        with pytest.raises(ProtocolError, match="`done`"):
            _ = stream.plan
    assert not server.received


@pytest.mark.parametrize("field", ["task", "task_id", "prompt_template"])
def test_half_a_surrogate_pair_is_refused_before_anything_is_sent(server: Any, field: str) -> None:
    arguments: dict[str, Any] = {"task": "x"} | {field: "a\ud800"}
    with Client(server.url) as client, pytest.raises(InvalidArgumentError) as caught:
        client.plan_latent(**arguments)
    assert caught.value.field == field
    assert not server.received


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_do_not_depend_on_the_chunks(size: int) -> None:
    stream = b": hi\n\nevent: a\r\ndata: 1\r\n\r\ndata:2\ndata: 3\nid: 9\n\nevent: b\n\n"
    stream += b"data: \xe2\x80\xa8\n\n"
    decoder = EventDecoder()
    cuts = [stream[at : at + size] for at in range(0, len(stream), size)]
    events = [event for cut in cuts for event in decoder.feed(cut)]
    assert events == [
        Event("a", b"1"),
        Event("message", b"2\n3"),
        Event("message", b"\xe2\x80\xa8"),
    ]


@pytest.mark.parametrize("piece", [b"x" * 50, b"data: x\n" * 7])
def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    decoder = EventDecoder()
    assert not list(decoder.feed(piece))
    with pytest.raises(ProtocolError, match="larger than 100"):
        list(decoder.feed(piece * 2))
