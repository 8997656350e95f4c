"""Requests that could be read in two ways are refused; other spellings of one thing are read."""

from __future__ import annotations

import json

import pytest

from latentwire.protocol import ErrorBody, PlanLatentBody
from support.live_server import LiveServer
from support.requests import GREEDY, assert_problem, plan_of

pytestmark = pytest.mark.backends("fake")

BODY = json.dumps(GREEDY).encode()
JSON = {"Content-Type": "application/json"}

# --- JSON


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"task": "x", "task": "x"}', "task"),
        ('{"task": "x", "seed": 1, "top_p": 0.5, "seed": 2}', "seed"),
        ('{"task": "x", "k": 1, "k": null}', "k"),
        ('{"task": "x", "t\\u0061sk": "y"}', "task"),
        ('{"task": "x", "logit_bias": {"7": 1, "7": 2}}', "7"),
        ('{"task": "x", "": 1, "": 2}', '""'),
        ('{"task": "x", "é": 1, "é": 2}', "é"),
        ('{"task": "x", "\\ud800": 1, "\\ud800": 2}', "?"),
    ],
)
def test_a_repeated_key_is_refused(server: LiveServer, text: str, key: str) -> None:
    answer = server.http.post("/plan_latent", content=text.encode(), headers=JSON)
    problem = assert_problem(answer, 422, "invalid-request", key)
    assert problem.detail == f"{key}: must not be repeated"


@pytest.mark.parametrize("in_query", [True, False])
@pytest.mark.parametrize("biases", ['{"7": 1, "7": 2}', '{"7": 1, "07": 2}'])
def test_a_token_has_one_bias(server: LiveServer, biases: str, in_query: bool) -> None:
    if in_query:
        answer = server.http.get("/plan_latent", params={"task": "x", "logit_bias": biases})
    else:
        text = f'{{"task": "x", "logit_bias": {biases}}}'
        answer = server.http.post("/plan_latent", content=text, headers=JSON)
    problem = ErrorBody.model_validate_json(answer.content)
    assert (answer.status_code, problem.code) == (422, "invalid-request")
    assert problem.field in ("logit_bias", "7")


def test_deeply_nested_text_in_a_query_is_refused(server: LiveServer) -> None:
    answer = server.http.get("/plan_latent", params={"task": "x", "logit_bias": "[" * 5000})
    assert_problem(answer, 422, "invalid-request", "logit_bias")


@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1"]
)
def test_a_body_that_is_not_utf_8_is_refused(server: LiveServer, encoding: str) -> None:
    content = '{"task": "Café", "max_new_tokens": 2}'.encode(encoding)
    answer = server.http.post("/plan_latent", content=content, headers=JSON)
    problem = assert_problem(answer, 422, "invalid-request", "body")
    assert problem.detail == "body: must be JSON in UTF-8"


def test_a_byte_order_mark_is_read_past(server: LiveServer) -> None:
    content = b"\xef\xbb\xbf" + BODY
    assert plan_of(server.http.post("/plan_latent", content=content, headers=JSON))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("name", sorted(PlanLatentBody.model_fields))
def test_a_number_that_is_not_finite_is_refused(server: LiveServer, name: str, value: str) -> None:
    fields = {field: json.dumps(given) for field, given in GREEDY.items()} | {name: value}
    text = ", ".join(f'"{field}": {given}' for field, given in fields.items())
    answer = server.http.post("/plan_latent", content=f"{{{text}}}", headers=JSON)
    assert_problem(answer, 422, "invalid-request", name)


def test_a_field_without_a_name_is_refused(server: LiveServer) -> None:
    for answer in (
        server.http.post("/plan_latent", json=GREEDY | {"": 1}),
        server.http.get("/plan_latent?task=x&=1"),
    ):
        problem = assert_problem(answer, 422, "invalid-request", '""')
        assert problem.detail == '"": unknown field'


# --- targets


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("task=100%", "task"),
        ("task=%zz", "task"),
        ("task=a%4", "task"),
        ("task=%%41", "task"),
        ("task=%C3%", "task"),
        ("task=x&stop=%u00e9", "stop"),
        ("task=x&%=1", "query"),
    ],
)
def test_a_query_with_a_broken_escape_is_refused(
    server: LiveServer, query: str, field: str
) -> None:
    # httpx would mend a target that is given as a URL.
    target = f"/plan_latent?{query}".encode()
    answer = server.http.get("/", extensions={"target": target})
    problem = assert_problem(answer, 422, "invalid-request", field)
    assert "%25" in problem.detail


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1/health", 200),
        ("HTTP://LOCALHOST:99/info", 200),
        ("https://[::1]/plan_latent?task=x&max_new_tokens=1", 200),
        ("http://127.0.0.1/plan_latent?task=%ff", 422),
        ("http://127.0.0.1", 404),
        ("http://127.0.0.1?task=x", 404),
        ("http://evil.example/info", 421),
        ("http:///info", 421),
        ("ftp://127.0.0.1/health", 404),
    ],
)
def test_a_target_in_absolute_form_names_host_and_path(
    server: LiveServer, target: str, status: int
) -> None:
    answer = server.http.get("/", extensions={"target": target.encode()})
    assert answer.status_code == status


def test_the_host_of_an_absolute_target_replaces_the_header(server: LiveServer) -> None:
    extensions = {"target": b"http://localhost/info"}
    answer = server.http.get("/", headers={"Host": "evil.example"}, extensions=extensions)
    assert answer.status_code == 200


def test_options_of_the_whole_service_list_every_method(server: LiveServer) -> None:
    answer = server.http.request("OPTIONS", "/", extensions={"target": b"*"})
    assert answer.status_code == 204
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("LocalHost:99", 200), ("localhost.", 200), ("localhost.:80", 200)),
        *(("127.0.0.1:80", 200), ("[::1]", 200), ("[::1]:80", 200), ("[0:0:0:0:0:0:0:1]:80", 200)),
        *(("::1", 421), ("localhost:http", 421), ("localhost..", 421), ("evil.localhost", 421)),
        *(("[::1", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("localhost:", 421)),
    ],
)
def test_a_host_is_known_in_every_spelling(server: LiveServer, host: str, status: int) -> None:
    assert server.http.get("/info", headers={"Host": host}).status_code == status


# --- Accept


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        *(("text/event-stream", 200), ("text/*", 200), ("*/*;q=0.1", 200), ("", 200)),
        # Clients that name JSON in every request get their stream.
        *(("application/json", 200), ("text/html, application/json;q=0.5", 200)),
        *(("text/html", 406), ("application/*", 406), ("application/json;q=0", 406)),
        *(("*/*;q=0", 406), ("text/event-stream;q=0, */*", 406)),
    ],
)
def test_accept_may_exclude_a_stream(server: LiveServer, accept: str, status: int) -> None:
    body = GREEDY | {"stream": True}
    answer = server.http.post("/plan_latent", json=body, headers={"Accept": accept})
    if status == 200:
        assert answer.headers["content-type"].startswith("text/event-stream")
    else:
        assert "text/event-stream" in assert_problem(answer, 406, "not-acceptable").detail
