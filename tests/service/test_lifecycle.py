"""A service's life over a real socket: loading, full, draining, lost; callers that go away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from latentwire_service import local_backend
from latentwire_service.engine.engine_thread import EngineThread, SubmittedRequest
from latentwire_service.engine.hf.build import build_runner
from latentwire_service.engine.hf.loader import load_model
from support.live_server import TIMEOUT_S, Gate, GatedRunner, LiveServer, without_numbers
from support.requests import GREEDY, assert_problem, plan_of, post


@pytest.fixture
def pool(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor
        gate.may_pass.set()


def test_while_loading_the_service_lives_but_is_not_ready(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Gate()
    load = load_model

    def load_slowly(*args: Any, **kwargs: Any) -> Any:
        held()
        return load(*args, **kwargs)

    monkeypatch.setattr(local_backend, "load_model", load_slowly)
    live = start()
    assert held.is_reached.wait(TIMEOUT_S)
    assert live.http.get("/health").status_code == 200
    for answer in (live.http.get("/ready"), live.http.get("/info"), post(live, GREEDY)):
        problem = assert_problem(answer, 503, "not-ready")
        assert problem.detail == "the service is loading"
        assert int(answer.headers["retry-after"]) >= 1
    held.may_pass.set()
    assert plan_of(post(live.wait_ready(), GREEDY))


def test_a_full_queue_is_429_with_retry_after(
    start: Callable[..., LiveServer],
    gate: Gate,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submitted = threading.Semaphore(0)
    submit = EngineThread.submit

    def submit_and_tell(self: EngineThread, *args: Any) -> SubmittedRequest:
        handle = submit(self, *args)
        submitted.release()
        return handle

    monkeypatch.setattr(EngineThread, "submit", submit_and_tell)
    live = start(max_slots=1, max_queue=1).wait_ready()
    taken = []
    for _ in range(2):
        taken.append(pool.submit(post, live, GREEDY))
        assert submitted.acquire(timeout=TIMEOUT_S)
    assert gate.is_reached.wait(TIMEOUT_S)
    assert live.metric("latentwire_requests_running") == 1
    assert live.metric("latentwire_requests_waiting") == 1
    answer = post(live, GREEDY)
    assert_problem(answer, 429, "queue-full")
    assert int(answer.headers["retry-after"]) >= 1
    gate.may_pass.set()
    for future in taken:
        assert plan_of(future.result(TIMEOUT_S))
    assert plan_of(post(live, GREEDY))


def test_draining_finishes_what_runs_and_refuses_the_rest(
    start: Callable[..., LiveServer],
    gate: Gate,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping = threading.Event()
    stop = EngineThread.stop

    def tell_and_stop(self: EngineThread, timeout_s: float | None = None) -> bool:
        stopping.set()
        return stop(self, timeout_s)

    monkeypatch.setattr(EngineThread, "stop", tell_and_stop)
    live = start().wait_ready()
    running = pool.submit(post, live, GREEDY)
    assert gate.is_reached.wait(TIMEOUT_S)
    drained = pool.submit(live.service.drain)
    assert stopping.wait(TIMEOUT_S)
    assert live.http.get("/health").status_code == 200
    for answer in (live.http.get("/ready"), post(live, GREEDY)):
        problem = assert_problem(answer, 503, "not-ready")
        assert problem.detail == "the service is draining"
        assert "retry-after" in answer.headers
    gate.may_pass.set()
    assert plan_of(running.result(TIMEOUT_S))
    drained.result(TIMEOUT_S)


def test_a_lost_engine_answers_503_to_all_and_reports_failure(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down() -> None:
        raise RuntimeError("device lost")

    build = build_runner
    monkeypatch.setattr(
        local_backend,
        "build_runner",
        lambda *args, **kw: GatedRunner(build(*args, **kw), before=break_down),
    )
    live = start().wait_ready()
    assert_problem(post(live, GREEDY), 503, "not-ready")
    assert live.failed.wait(TIMEOUT_S)
    assert isinstance(live.service.failure, RuntimeError)
    assert assert_problem(live.http.get("/ready"), 503, "not-ready").detail.endswith("failed")


def test_a_latent_that_is_not_finite_is_an_error_never_a_message(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = build_runner
    monkeypatch.setattr(
        local_backend,
        "build_runner",
        lambda *args, **kw: GatedRunner(build(*args, **kw), change=without_numbers),
    )
    live = start().wait_ready()
    assert_problem(post(live, GREEDY), 500, "latent-invalid")
    assert plan_of(post(live, GREEDY | {"max_new_tokens": 1}))


def test_a_client_that_goes_away_frees_its_slot(
    start: Callable[..., LiveServer], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    cancel = EngineThread.cancel

    def cancel_and_tell(self: EngineThread, request: Any) -> None:
        cancel(self, request)
        cancelled.set()

    monkeypatch.setattr(EngineThread, "cancel", cancel_and_tell)
    live = start(max_slots=1).wait_ready()
    body = json.dumps(GREEDY | {"max_new_tokens": 300}).encode()
    head = f"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(
            head.replace("\r\n\r\n", "\r\nContent-Type: application/json\r\n\r\n").encode() + body
        )
        assert gate.is_reached.wait(TIMEOUT_S)
    assert cancelled.wait(TIMEOUT_S)
    gate.may_pass.set()
    assert plan_of(post(live, GREEDY))
    # Of the 300 tokens only those of the steps that had begun.
    assert live.metric("latentwire_generation_tokens_total") < 20
    gone = live.metric("latentwire_requests_total", path="/plan_latent", status="499")
    assert gone == 1
