"""A service's life over a real socket: loading, full, draining, lost; callers that go away."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY, assert_problem, plan_of, post

pytestmark = pytest.mark.backends("fake", "local", "vllm")


@pytest.fixture
def pool(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor
        gate.may_pass.set()


def test_while_loading_the_service_lives_but_is_not_ready(
    start: Callable[..., LiveServer],
) -> None:
    held = Gate()
    live = start(Faults(before_load=held))
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
) -> None:
    live = start(Faults(before_decode=gate), max_slots=1, max_queue=1).wait_ready()
    taken = []
    for _ in range(2):
        taken.append(pool.submit(post, live, GREEDY))
        assert live.watch.submitted.acquire(timeout=TIMEOUT_S)
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


def test_draining_finishes_running_requests_and_refuses_new_ones(
    start: Callable[..., LiveServer],
    gate: Gate,
    pool: ThreadPoolExecutor,
) -> None:
    live = start(Faults(before_decode=gate)).wait_ready()
    running = pool.submit(post, live, GREEDY)
    assert gate.is_reached.wait(TIMEOUT_S)
    drained = pool.submit(live.service.drain)
    assert live.watch.draining.wait(TIMEOUT_S)
    assert live.http.get("/health").status_code == 200
    for answer in (live.http.get("/ready"), post(live, GREEDY)):
        problem = assert_problem(answer, 503, "not-ready")
        assert problem.detail == "the service is draining"
        assert "retry-after" in answer.headers
    gate.may_pass.set()
    assert plan_of(running.result(TIMEOUT_S))
    drained.result(TIMEOUT_S)


def test_a_lost_engine_answers_503_to_all_and_reports_failure(
    start: Callable[..., LiveServer],
) -> None:
    def break_down() -> None:
        raise RuntimeError("device lost")

    live = start(Faults(before_decode=break_down)).wait_ready()
    assert_problem(post(live, GREEDY), 503, "not-ready")
    assert live.failed.wait(TIMEOUT_S)
    assert isinstance(live.service.failure, RuntimeError)
    assert assert_problem(live.http.get("/ready"), 503, "not-ready").detail.endswith("failed")


def test_a_latent_that_is_not_finite_is_an_error_never_an_answer(
    start: Callable[..., LiveServer],
) -> None:
    live = start(Faults(has_nan_rows=True)).wait_ready()
    assert_problem(post(live, GREEDY), 500, "latent-invalid")
    assert plan_of(post(live, GREEDY | {"max_new_tokens": 1}))


def test_a_client_that_goes_away_frees_its_slot(
    start: Callable[..., LiveServer],
    gate: Gate,
) -> None:
    live = start(Faults(before_decode=gate), max_slots=1).wait_ready()
    body = json.dumps(GREEDY | {"max_new_tokens": 300}).encode()
    head = f"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(
            head.replace("\r\n\r\n", "\r\nContent-Type: application/json\r\n\r\n").encode() + body
        )
        assert gate.is_reached.wait(TIMEOUT_S)
    assert live.watch.cancelled.wait(TIMEOUT_S)
    gate.may_pass.set()
    assert plan_of(post(live, GREEDY))
    # Of the 300 tokens only those of the steps that had begun.
    assert live.metric("latentwire_generation_tokens_total") < 20
    live.wait_metric(1, "latentwire_requests_total", path="/plan_latent", status="499")
