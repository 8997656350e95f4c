"""Refusals over a real socket: each has its status and names the field."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from latentwire.protocol import ErrorBody
from support.backends import Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY, MAX_BODY_BYTES, assert_problem, plan_of, post

pytestmark = pytest.mark.backends("fake", "local", "vllm")

TASK = '{"task": "x", "max_new_tokens": 2%s}'
BAD_BODIES: list[tuple[bytes | str, str]] = [
    (b"", "body"),
    (b"null", "body"),
    (b"[]", "body"),
    (b'"text"', "body"),
    (b"{task}", "body"),
    (b'{"task": "\xff\xfe"}', "body"),
    ("[" * 50_000, "body"),
    ('{"a":' * 15_000, "body"),
    ('{"task":' + "[" * 40_000 + "]" * 40_000 + "}", "body"),
    (TASK % (',"seed": 1' + "0" * 5000), "body"),
    ("{}", "task"),
    ('{"task": ""}', "task"),
    ('{"task": 5}', "task"),
    ('{"task": null}', "task"),
    ('{"task": "\\ud800"}', "task"),
    (TASK % ', "task_id": "a\\udc00"', "task_id"),
    (TASK % ', "prompt_template": "{task}\\ud800"', "prompt_template"),
    (TASK % ', "prompt_template": ""', "prompt_template"),
    (TASK % ', "stop": ["\\ud800"]', "stop.0"),
    (TASK % ', "stop": ["a", ""]', "stop.1"),
    (TASK % ', "stop": "a"', "stop"),
    (TASK % ', "temperature": NaN', "temperature"),
    (TASK % ', "temperature": Infinity', "temperature"),
    (TASK % ', "temperature": -Infinity', "temperature"),
    (TASK % ', "temperature": 1e999', "temperature"),
    (TASK % (', "temperature": 1' + "0" * 400), "temperature"),
    (TASK % ', "temperature": -1', "temperature"),
    (TASK % ', "top_p": 0', "top_p"),
    (TASK % ', "top_p": 1.01', "top_p"),
    (TASK % ', "top_p": NaN', "top_p"),
    (TASK % ', "top_k": -1', "top_k"),
    (TASK % ', "top_k": 1.5', "top_k"),
    (TASK % (', "seed": 1' + "0" * 400), "seed"),
    (TASK % ', "seed": 9223372036854775808', "seed"),
    (TASK % ', "seed": -1', "seed"),
    (TASK % ', "chat_template": "llama"', "chat_template"),
    (TASK % ', "max_new_tokens": 0', "max_new_tokens"),
    (TASK % ', "max_new_tokens": true', "max_new_tokens"),
    (TASK % ', "max_new_tokens": "3"', "max_new_tokens"),
    (TASK % ', "do_sample": 1', "do_sample"),
    (TASK % ', "stream": 2', "stream"),
    (TASK % ', "k": -1', "k"),
    (TASK % ', "k": "3"', "k"),
    (TASK % ', "max_tokens": 3', "max_tokens"),
]


@pytest.mark.parametrize(("content", "field"), BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_bad_body_is_refused_by_field(
    server: LiveServer, content: bytes | str, field: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = server.http.post("/plan_latent", content=content, headers=headers)
    body = assert_problem(answer, 422, "invalid-request", field)
    assert len(body.detail) < 300


@pytest.mark.parametrize("name", ["\\ud800", "n" * 50_000])
def test_a_strange_unknown_field_is_refused(server: LiveServer, name: str) -> None:
    answer = server.http.post(
        "/plan_latent",
        content=f'{{"task": "x", "{name}": 1}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert ErrorBody.model_validate_json(answer.content).code == "invalid-request"
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "task"),
        ("task=", "task"),
        ("task=x&kk=3", "kk"),
        ("task=x&k=-1", "k"),
        ("task=x&k=1.5", "k"),
        ("task=x&k=", "k"),
        ("task=x&temperature=nan", "temperature"),
        ("task=x&temperature=inf", "temperature"),
        ("task=x&top_p=2", "top_p"),
        ("task=x&do_sample=perhaps", "do_sample"),
        ("task=x&seed=1" + "0" * 400, "seed"),
        ("task=x&stream=perhaps", "stream"),
        ("task=x&stop=", "stop.0"),
    ],
)
def test_a_bad_query_is_refused_by_field(server: LiveServer, query: str, field: str) -> None:
    assert_problem(server.http.get(f"/plan_latent?{query}"), 422, "invalid-request", field)


@pytest.mark.parametrize(("params", "field"), [({"kk": "3"}, "kk"), ({"k": "-1"}, "k")])
def test_a_bad_query_of_a_post_is_refused(
    server: LiveServer, params: dict[str, str], field: str
) -> None:
    assert_problem(post(server, GREEDY, **params), 422, "invalid-request", field)


@pytest.mark.parametrize("max_new_tokens", [512, 10**400])
def test_a_prompt_too_long_is_refused_with_both_numbers(
    server: LiveServer, max_new_tokens: int
) -> None:
    body = {"task": "x", "prompt_template": "{task}yz", "max_new_tokens": max_new_tokens}
    problem = assert_problem(post(server, body), 422, "prompt-too-long")
    assert (problem.prompt_tokens, problem.max_model_len) == (3, 512)


def test_a_prompt_that_just_fits_is_served(server: LiveServer) -> None:
    body = {"task": "x" * 510, "prompt_template": "{task}", "max_new_tokens": 2}
    assert plan_of(post(server, body)).usage.prompt_tokens == 510
    body["task"] = "x" * 511
    assert_problem(post(server, body), 422, "prompt-too-long")


def chunks() -> Iterator[bytes]:
    yield b'{"task": "'
    for _ in range(20):
        yield b"x" * 10_000
    yield b'"}'


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(
    start: Callable[..., LiveServer], gate: Gate, method: str, is_announced: bool
) -> None:
    # A GET runs while its body arrives: it must not finish before the body is too long.
    live = start(Faults(before_decode=gate)).wait_ready()
    content = b"".join(chunks()) if is_announced else chunks()
    answer = live.http.request(
        method,
        "/plan_latent?task=x&max_new_tokens=400" if method == "GET" else "/plan_latent",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    problem = assert_problem(answer, 413, "payload-too-large")
    assert str(MAX_BODY_BYTES) in problem.detail
    gate.may_pass.set()
    assert plan_of(post(live, GREEDY))


def test_a_client_that_sends_all_of_a_too_large_body_sees_the_refusal(server: LiveServer) -> None:
    """Some clients send everything before they read, and a reset would hide the answer."""
    body = b"x" * 2_000_000
    head = (
        "POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(head.encode())
        for start in range(0, len(body), 100_000):
            connection.sendall(body[start : start + 100_000])
            # Long enough for the refusal to arrive and the connection to be closed.
            time.sleep(0.02)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_unknown_paths_and_methods_are_problems(server: LiveServer) -> None:
    assert_problem(server.http.get("/plan"), 404, "not-found")
    # A redirect would repeat the query in a header.
    elsewhere = server.http.get("/plan_latent/", params={"task": "x"})
    assert_problem(elsewhere, 404, "not-found")
    answer = server.http.delete("/plan_latent")
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, OPTIONS, POST"
