"""HTTP as its standards describe it: methods, content coding and type, queries, `Accept`."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Callable

import pytest

from latentwire_service.api.head_requests import HEAD_PATHS
from support.gate import TIMEOUT_S
from support.live_server import LiveServer
from support.requests import GREEDY, MAX_BODY_BYTES, assert_problem, plan_of

pytestmark = pytest.mark.backends("fake")

BODY = json.dumps(GREEDY).encode()
JSON = {"Content-Type": "application/json"}
# They differ from answer to answer.
OWN_HEADERS = {"date", "x-request-id"}

# --- methods


@pytest.mark.parametrize("path", sorted(HEAD_PATHS))
def test_head_answers_as_get_without_a_body(server: LiveServer, path: str) -> None:
    got, head = server.http.get(path), server.http.head(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    # What they tell of the moment can be a digit longer.
    is_of_the_moment = path in ("/metrics", "/info")
    names = set(got.headers) - OWN_HEADERS - ({"content-length"} if is_of_the_moment else set())
    assert {n: head.headers[n] for n in names} == {n: got.headers[n] for n in names}


def test_head_of_an_error_has_its_status(start: Callable[..., LiveServer]) -> None:
    live = start(api_key="k").wait_ready()
    live.http.headers.pop("authorization")
    answer = live.http.head("/info")
    assert (answer.status_code, answer.content) == (401, b"")


def test_a_connection_is_usable_after_head(server: LiveServer) -> None:
    request = b"%s /health HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n"
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(request % (b"HEAD", b"") + request % (b"GET", b"Connection: close\r\n"))
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b'{"status":"ok"}') == 1


def test_head_does_not_run_a_plan(server: LiveServer) -> None:
    server.forget_submitted()
    answer = server.http.head("/plan_latent", params={"task": "x"})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, OPTIONS, POST"
    assert not server.watch.submitted.acquire(blocking=False)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/plan_latent", "GET, OPTIONS, POST"),
        ("/health", "GET, HEAD, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_and_refusals_list_the_methods(server: LiveServer, path: str, allow: str) -> None:
    answer = server.http.options(path)
    assert (answer.status_code, answer.content, answer.headers["allow"]) == (204, b"", allow)
    refusal = server.http.delete(path)
    assert_problem(refusal, 405, "method-not-allowed")
    assert refusal.headers["allow"] == allow


def test_a_slash_at_the_end_is_named(server: LiveServer) -> None:
    for path in ("/health/", "/plan_latent/", "/docs/"):
        problem = assert_problem(server.http.get(path), 404, "not-found")
        assert "slash" in problem.detail
    assert "slash" not in assert_problem(server.http.get("/other/"), 404, "not-found").detail


# --- content coding


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("", bytes),
    ],
)
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_coded_body_is_decoded(
    server: LiveServer, coding: str, encode: Callable[[bytes], bytes], is_announced: bool
) -> None:
    coded = encode(BODY)
    # One byte at a time, so that the coding is cut everywhere.
    content = coded if is_announced else (coded[i : i + 1] for i in range(len(coded)))
    answer = server.http.post(
        "/plan_latent", content=content, headers=JSON | {"Content-Encoding": coding}
    )
    assert plan_of(answer).task == GREEDY["task"]


@pytest.mark.parametrize(
    "coding", ["br", "zstd", "compress", "gzip, gzip", "deflate,br", "x" * 500]
)
def test_another_coding_is_415_with_the_codings_that_are_read(
    server: LiveServer, coding: str
) -> None:
    answer = server.http.post(
        "/plan_latent", content=gzip.compress(BODY), headers=JSON | {"Content-Encoding": coding}
    )
    problem = assert_problem(answer, 415, "unsupported-media-type")
    assert "Content-Encoding" in problem.detail
    assert len(problem.detail) < 200
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("coding", "content"),
    [
        ("gzip", BODY),
        ("gzip", gzip.compress(BODY)[:-4]),
        ("gzip", gzip.compress(BODY) * 2),
        ("gzip", gzip.compress(BODY) + b"x"),
        ("gzip", zlib.compress(BODY)),
        ("deflate", gzip.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("gzip", gzip.compress(BODY).replace(b"\x1f\x8b", b"\x1f\x8c")),
    ],
    ids=range(8),
)
def test_a_body_that_is_not_in_its_coding_is_refused(
    server: LiveServer, coding: str, content: bytes
) -> None:
    answer = server.http.post(
        "/plan_latent", content=content, headers=JSON | {"Content-Encoding": coding}
    )
    problem = assert_problem(answer, 422, "invalid-request", "body")
    assert problem.detail == f"body: not valid {coding} data"


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 50_000_000])
def test_the_limit_of_a_body_holds_after_decoding(server: LiveServer, size: int) -> None:
    content = gzip.compress(BODY + b" " * (size - len(BODY)))
    assert len(content) < MAX_BODY_BYTES
    answer = server.http.post(
        "/plan_latent", content=content, headers=JSON | {"Content-Encoding": "gzip"}
    )
    if size <= MAX_BODY_BYTES:
        assert plan_of(answer)
    else:
        problem = assert_problem(answer, 413, "payload-too-large")
        assert str(MAX_BODY_BYTES) in problem.detail


# --- content type


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; charset=us-ascii; x=y",
        "application/vnd.agent+json",
    ],
)
def test_json_is_read_under_its_names(server: LiveServer, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    assert plan_of(server.http.post("/plan_latent", content=BODY, headers=headers))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Type", "")],
        # `curl --data` without a header.
        [("Content-Type", "application/x-www-form-urlencoded")],
        [("Content-Type", "multipart/form-data; boundary=x")],
        [("Content-Type", "text/plain")],
        [("Content-Type", "text/json")],
        [("Content-Type", "application/jsonl")],
        [("Content-Type", "application/json; charset=iso-8859-1")],
        [("Content-Type", "application/json; charset=utf-16")],
        [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        [("Content-Type", "x/" + "y" * 500)],
    ],
)
def test_a_body_of_another_type_is_415_and_names_the_header(
    server: LiveServer, headers: list[tuple[str, str]]
) -> None:
    answer = server.http.post("/plan_latent", content=BODY, headers=headers)
    problem = assert_problem(answer, 415, "unsupported-media-type")
    assert "Content-Type" in problem.detail
    assert len(problem.detail) < 200
    assert answer.headers["accept"] == "application/json"


def test_no_body_is_refused_as_missing(server: LiveServer) -> None:
    problem = assert_problem(server.http.post("/plan_latent"), 422, "invalid-request", "body")
    assert problem.detail == "body: required"


# --- queries


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("task=%ff", "task"),
        ("task=caf%E9", "task"),
        ("task=%ED%A0%80", "task"),
        ("task=%C0%AF", "task"),
        ("task=ab%E2%82", "task"),
        ("task=x&stop=%fe", "stop"),
        ("task=x&%ff=1", "query"),
    ],
)
def test_a_query_that_is_not_utf_8_is_refused(server: LiveServer, query: str, field: str) -> None:
    answer = server.http.get(f"/plan_latent?{query}")
    problem = assert_problem(answer, 422, "invalid-request", field)
    assert problem.detail.endswith("must be UTF-8")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("task=x&task=y", "task"),
        ("task=x&k=1&k=1", "k"),
        ("task=x&seed=1&top_p=0.5&seed=2", "seed"),
        ("task=x&t%61sk=y", "task"),
        ("task=x&k=1&k", "k"),
    ],
)
def test_a_repeated_parameter_is_refused(server: LiveServer, query: str, field: str) -> None:
    answer = server.http.get(f"/plan_latent?{query}")
    problem = assert_problem(answer, 422, "invalid-request", field)
    assert problem.detail == f"{field}: must not be repeated; it occurs 2 times"


def test_a_list_may_be_repeated(server: LiveServer) -> None:
    query = "task=Wash%20%F0%9F%AB%96&max_new_tokens=2&stop=%C3%A9&stop=b%2Bc+d"
    assert plan_of(server.http.get(f"/plan_latent?{query}")).task == "Wash 🫖"


@pytest.mark.parametrize(
    ("query", "in_body", "kept"),
    [("", 2, 2), ("?k=2", None, 2), ("?k=2", 2, 2), ("", None, None), ("", 0, 0)],
)
def test_k_may_be_in_the_query_or_the_body(
    server: LiveServer, query: str, in_body: int | None, kept: int | None
) -> None:
    answer = plan_of(server.http.post(f"/plan_latent{query}", json=GREEDY | {"k": in_body}))
    assert answer.k == kept


def test_two_different_numbers_of_rows_are_refused(server: LiveServer) -> None:
    answer = server.http.post("/plan_latent?k=3", json=GREEDY | {"k": 2})
    assert_problem(answer, 422, "invalid-request", "k")


# --- Accept


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "application/vnd.apache.arrow.stream"),
        ("application/x-safetensors;q=0.2, application/json;q=0.1", "application/x-safetensors"),
        ("text/event-stream, application/json", "application/json"),
        ("", "application/json"),
        # Malformed.
        ("json", "application/json"),
        ("application/x-safetensors;q=much", "application/json"),
    ],
)
def test_accept_chooses_the_form(server: LiveServer, accept: str, content_type: str) -> None:
    answer = server.http.post("/plan_latent", json=GREEDY, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/xml, image/*",
        "*/*;q=0",
        "text/event-stream",
        "application/x-safetensors;q=0",
    ],
)
def test_accept_that_excludes_every_form_is_406(server: LiveServer, accept: str) -> None:
    answer = server.http.post("/plan_latent", json=GREEDY, headers={"Accept": accept})
    problem = assert_problem(answer, 406, "not-acceptable")
    assert "application/x-safetensors" in problem.detail
