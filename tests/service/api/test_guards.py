"""Access, and limits of time and size."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentwire import Client, DeadlineExceededError, UnauthorizedError
from latentwire_service.api.access_policy import ApiKeys, PolicyError, policy_of
from latentwire_service.settings import Settings
from support.backends import BACKENDS, Faults
from support.gate import TIMEOUT_S, Gate
from support.live_server import LiveServer
from support.requests import GREEDY

pytestmark = pytest.mark.backends("fake", "local", "vllm")

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server(folder: Path, backend: str) -> Iterator[LiveServer]:
    settings = Settings(model=str(folder), max_slots=2, api_key=KEYS, max_new_tokens_limit=50)
    live = LiveServer(settings, BACKENDS[backend])
    yield live.wait_ready()
    live.close()


@pytest.fixture
def start(folder: Path, backend: str) -> Iterator[Callable[..., LiveServer]]:
    started: list[LiveServer] = []

    def start_one(faults: Faults | None = None, **settings: Any) -> LiveServer:
        given: dict[str, Any] = {"model": str(folder), "max_slots": 1} | settings
        started.append(LiveServer(Settings(**given), BACKENDS[backend], faults or Faults()))
        return started[-1].wait_ready()

    yield start_one
    for live in started:
        live.close()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


# --- keys


@pytest.mark.parametrize("path", ["/info", "/metrics", "/plan_latent", "/other"])
@pytest.mark.parametrize(
    "header",
    [
        None,
        "first-key",
        "Bearer",
        "Bearer first-ke",
        "Bearer first-key2",
        "Bearer FIRST-KEY",
        "Basic first-key",
        "Bearer first-key,second-key",
    ],
)
def test_without_a_valid_key_nothing_is_answered(
    server: LiveServer, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.get(f"{server.url}{path}", headers=headers)
    assert code_of(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_two_authorization_headers_are_refused(server: LiveServer) -> None:
    headers = [("Authorization", f"Bearer {key}") for key in KEYS]
    assert httpx.get(f"{server.url}/info", headers=headers).status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_accepted(server: LiveServer, key: str) -> None:
    with Client(server.url, api_key=key) as client:
        assert len(client.plan_latent(**GREEDY).token_ids) == 6
        assert len(list(client.stream_plan_latent(**GREEDY))) == 6


def test_the_client_raises_for_a_missing_key(server: LiveServer) -> None:
    with Client(server.url) as client:
        with pytest.raises(UnauthorizedError, match="an API key is required"):
            client.plan_latent("x")
        with pytest.raises(UnauthorizedError):
            list(client.stream_plan_latent("x"))


def test_probes_need_no_key(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/ready", headers={"Host": "10.1.2.3"}).status_code == 200


def test_metrics_can_be_public(start: Callable[..., LiveServer]) -> None:
    live = start(api_key="k", metrics_public=True)
    assert httpx.get(f"{live.url}/metrics").status_code == 200
    assert httpx.get(f"{live.url}/info").status_code == 401


def test_a_key_is_compared_with_every_valid_key(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(shown: bytes, known: bytes) -> bool:
        assert len(shown) == len(known) == 32
        compared.append(known)
        return shown == known

    monkeypatch.setattr("hmac.compare_digest", compare)
    keys = ApiKeys(["a", "b", "c"])
    assert keys.caller_of(b"Bearer a") is not None
    assert len(set(compared)) == 3


def test_keys_come_from_flag_variable_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("three\n\n  four  \n")
    monkeypatch.setenv("LATENTWIRE_API_KEY", "one, two")
    policy = policy_of(Settings(api_key_file=file))
    for key in ("one", "two", "three", "four"):
        assert policy.api_keys.caller_of(f"Bearer {key}".encode()) is not None
    assert policy.api_keys.caller_of(b"Bearer one, two") is None
    assert "two" not in repr(Settings())


@pytest.mark.parametrize("content", ["", "\n \n", None, "a b\n", "ключ\n"])
def test_a_key_file_without_usable_keys_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PolicyError, match="^--api-key-file: ") as caught:
        policy_of(Settings(api_key_file=file))
    assert str(tmp_path) not in str(caught.value)


def test_an_empty_key_names_its_flag() -> None:
    with pytest.raises(PolicyError, match="^--api-key: "):
        policy_of(Settings(api_key=("",)))


# --- hosts and origins


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:1", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:80:80", 421),
        ("", 421),
    ],
)
def test_on_loopback_only_loopback_names_are_accepted(
    server: LiveServer, host: str, status: int
) -> None:
    answer = server.http.get("/info", headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert code_of(answer) == (421, "misdirected")


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"host": "0.0.0.0"}, None),
        ({"host": "0.0.0.0", "allowed_host": "Plans.example,b"}, {"plans.example", "b"}),
        ({"allowed_host": ["a", "b"]}, {"a", "b"}),
        ({"host": "127.0.0.2"}, {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
    ],
)
def test_the_accepted_hosts_follow_from_the_settings(
    settings: dict[str, Any], allowed: set[str] | None
) -> None:
    assert policy_of(Settings(**settings)).allowed_hosts == allowed


def test_other_origins_may_call_only_if_configured(
    server: LiveServer, start: Callable[..., LiveServer]
) -> None:
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    refused = httpx.options(f"{server.url}/plan_latent", headers=preflight)
    assert "access-control-allow-origin" not in refused.headers
    live = start(cors_origin="https://a.example", api_key="k")
    allowed = httpx.options(f"{live.url}/plan_latent", headers=preflight)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = httpx.options(
        f"{live.url}/plan_latent", headers=preflight | {"Origin": "https://b.example"}
    )
    assert "access-control-allow-origin" not in other.headers


# --- limits


def test_more_tokens_than_the_limit_are_refused(server: LiveServer) -> None:
    answer = server.http.post("/plan_latent", json=GREEDY | {"max_new_tokens": 51})
    assert code_of(answer) == (422, "invalid-request")
    assert answer.json()["field"] == "max_new_tokens"
    assert server.http.get("/info").json()["limits"]["max_new_tokens"] == 50


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_deadline_ends_a_request_and_frees_its_slot(
    start: Callable[..., LiveServer], gate: Gate, is_stream: bool
) -> None:
    live = start(Faults(before_decode=gate))
    body = GREEDY | {"max_new_tokens": 300}
    with Client(live.url) as client:
        # Of this client alone: on a busy machine, the request below takes as long as it takes.
        client._http.headers["X-Request-Timeout"] = "0.5"
        plan: Callable[..., Any] = client.stream_plan_latent if is_stream else client.plan_latent
        with pytest.raises(DeadlineExceededError, match=r"within 0\.5 s"):
            list(plan(**body))
    had_first_token = gate.is_reached.is_set()
    gate.may_pass.set()
    # With one slot, an answer means that the slot is free again.
    answer = live.http.post("/plan_latent", json=GREEDY | {"max_new_tokens": 1})
    assert answer.status_code == 200
    assert live.metric("latentwire_generation_tokens_total") < 20
    # The expired request had its first token, too, unless it expired before it was decoded.
    if had_first_token:
        live.wait_metric(2, "latentwire_time_to_first_token_seconds_count")
    live.wait_metric(1, "latentwire_e2e_request_latency_seconds_count")


def test_a_request_can_shorten_its_deadline_but_not_extend_it(
    start: Callable[..., LiveServer], gate: Gate
) -> None:
    live = start(Faults(before_decode=gate), request_timeout=0.3)
    for given, enforced in (("0.1", "0.1"), ("1000", "0.3")):
        answer = live.http.post("/plan_latent", json=GREEDY, headers={"X-Request-Timeout": given})
        assert code_of(answer) == (504, "deadline-exceeded")
        assert f"within {enforced} s" in answer.json()["detail"]
    gate.may_pass.set()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_an_invalid_timeout_is_refused(server: LiveServer, value: str) -> None:
    answer = server.http.post("/plan_latent", json=GREEDY, headers={"X-Request-Timeout": value})
    assert code_of(answer) == (422, "invalid-request")
    assert answer.json()["field"] == "x-request-timeout"


@pytest.mark.parametrize(
    "body",
    [b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"tas\r\n', b"Content-Length: 50\r\n\r\n{"],
)
def test_a_body_that_never_ends_is_answered_408(
    start: Callable[..., LiveServer], body: bytes
) -> None:
    live = start(api_key=KEYS, body_timeout=0.5)
    with socket.create_connection(("127.0.0.1", live.port), TIMEOUT_S) as connection:
        connection.sendall(
            b"POST /plan_latent HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer first-key\r\nContent-Type: application/json\r\n" + body
        )
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body-timeout"' in answer


def test_too_many_headers_are_refused(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 5000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert server.http.get("/info").status_code == 200


@pytest.mark.backends("local")
def test_a_greedy_key_does_not_lock_others_out(
    start: Callable[..., LiveServer], gate: Gate
) -> None:
    live = start(Faults(before_decode=gate), api_key=("greedy", "modest"), max_queue=2)

    def send(key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(
            f"{live.url}/plan_latent", json=GREEDY, headers=headers, timeout=TIMEOUT_S
        )

    with ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(send, "greedy")]
        assert gate.is_reached.wait(TIMEOUT_S)
        for count in (1, 2):
            taken.append(pool.submit(send, "greedy"))
            live.wait_metric(count, "latentwire_requests_waiting")
        assert send("greedy").status_code == 429
        modest = pool.submit(send, "modest")
        # It is queued when the held step is over, and displaces the newest of the others.
        live.wait_metric(3, "latentwire_requests_waiting")
        gate.may_pass.set()
        assert modest.result(TIMEOUT_S).status_code == 200
        statuses = sorted(future.result(TIMEOUT_S).status_code for future in taken)
        assert statuses == [200, 200, 429]


# --- draining


def test_draining_fails_requests_that_are_not_done_in_time(
    start: Callable[..., LiveServer], gate: Gate
) -> None:
    live = start(Faults(before_decode=gate))
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(live.http.post, "/plan_latent", json=GREEDY)
        assert gate.is_reached.wait(TIMEOUT_S)
        drained = pool.submit(live.service.drain, 0.01)
        # Its time is over before the step is.
        assert live.watch.aborted.wait(TIMEOUT_S)
        gate.may_pass.set()
        assert drained.result(TIMEOUT_S) is False
        answer = running.result(TIMEOUT_S)
    assert code_of(answer) == (503, "not-ready")
    assert "stopped before" in answer.json()["detail"]
