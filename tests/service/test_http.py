"""The HTTP contract over a real socket: every endpoint, every error, and who must not wait."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from latentwire.protocol import ErrorBody, InfoResponse, PlanLatentResponse
from latentwire.tensors import decode_hidden_state
from latentwire_service import intake, loading, rendering, wire_formats
from latentwire_service.engine.engine_thread import EngineThread
from latentwire_service.engine.prompt import fill_template
from latentwire_service.logs import PathlessFormatter
from latentwire_service.settings import Settings
from service.live_server import TIMEOUT_S, Gate, GatedRunner, LiveServer, without_numbers
from tiny_models import (
    HIDDEN_SIZE,
    build_model,
    build_tokenizer,
    generate,
    llama_config,
    save_model,
)

GREEDY = {"task": "Wash the mug.", "do_sample": False, "max_new_tokens": 6}
MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


def settings_of(folder: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {"model": str(folder), "max_slots": 4, "max_body_bytes": MAX_BODY_BYTES}
    return Settings(**(given | changes))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    live = LiveServer(settings_of(folder))
    yield live.wait_ready()
    live.close()


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., LiveServer]]:
    """Start a server of the test's own."""
    started: list[LiveServer] = []

    def start_one(**changes: Any) -> LiveServer:
        started.append(LiveServer(settings_of(folder, **changes)))
        return started[-1]

    yield start_one
    for live in started:
        live.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds every decode step of servers that are started afterwards."""
    held = Gate()
    build = loading.build_runner
    monkeypatch.setattr(
        loading, "build_runner", lambda *args, **kw: GatedRunner(build(*args, **kw), before=held)
    )
    yield held
    held.may_pass.set()


@pytest.fixture
def pool(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor
        gate.may_pass.set()


def plan_of(answer: httpx.Response) -> PlanLatentResponse:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return PlanLatentResponse.model_validate_json(answer.content, strict=True)


def assert_problem(
    answer: httpx.Response, status: int, code: str, field: str | None = None
) -> ErrorBody:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = ErrorBody.model_validate_json(answer.content)
    assert (body.status, body.code, body.field) == (status, code, field)
    return body


def post(live: LiveServer, body: object, **params: Any) -> httpx.Response:
    return live.http.post("/plan_latent", json=body, params=params)


# --- answers


def test_a_plan_carries_the_rows_that_generate_gives(server: LiveServer) -> None:
    tokenizer = build_tokenizer()
    template = "Plan {task}, {0} {other}: {task}"
    prompt = tokenizer.encode(fill_template(template, "Wash the mug."))
    expected = generate(build_model(llama_config()), prompt, 6)
    answer = plan_of(post(server, GREEDY | {"prompt_template": template, "task_id": "t-1"}, k=4))
    assert answer.token_ids == expected.token_ids
    assert answer.plan == tokenizer.decode(expected.token_ids, skip_special_tokens=True)
    assert (answer.task, answer.task_id, answer.k) == ("Wash the mug.", "t-1", 4)
    assert (answer.model, answer.latent.model, answer.latent.revision) == ("tiny", "tiny", None)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.latent_steps == 4
    rows = decode_hidden_state(answer.hidden_state)
    assert rows.shape == (4, HIDDEN_SIZE)
    np.testing.assert_allclose(rows, expected.hidden_state[:4], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("k", "num_rows"), [(None, 6), (0, 0), (2, 2), (6, 6), (10**400, 6)])
def test_k_keeps_the_first_rows(server: LiveServer, k: int | None, num_rows: int) -> None:
    answer = plan_of(post(server, GREEDY, **({} if k is None else {"k": str(k)})))
    assert answer.k == k
    assert answer.hidden_state.shape == (num_rows, HIDDEN_SIZE)
    assert len(answer.token_ids) == 6
    assert len(decode_hidden_state(answer.hidden_state)) == num_rows


def test_post_and_get_agree_on_every_field(server: LiveServer) -> None:
    fields: dict[str, Any] = {
        "task": "Wash & dry: {mug} 100% 🫖",
        "task_id": "a/b",
        "prompt_template": "Do {task}",
        "chat_template": "qwen",
        "max_new_tokens": 12,
        "do_sample": True,
        "temperature": 1.5,
        "top_p": 0.8,
        "top_k": 30,
        "seed": 2**63 - 1,
        "stop": ["never", "ever"],
        "stream": False,
    }
    posted = plan_of(post(server, fields, k=3))
    query = fields | {"k": 3, "do_sample": "true", "stream": "false"}
    got = plan_of(server.http.get("/plan_latent", params=query))
    for answer in (posted, got):
        assert answer.seed == fields["seed"]
    own = {"id", "timings"}
    assert posted.model_dump(exclude=own) == got.model_dump(exclude=own)


def test_a_drawn_seed_repeats_the_answer(server: LiveServer) -> None:
    body = {"task": "Wash", "max_new_tokens": 16, "temperature": 2.0}
    first, other = (plan_of(post(server, body)) for _ in range(2))
    assert first.seed != other.seed
    again = plan_of(post(server, body | {"seed": first.seed}))
    assert again.token_ids == first.token_ids
    assert again.hidden_state.data == first.hidden_state.data
    assert again.id != first.id


def test_a_stop_string_ends_the_plan(server: LiveServer) -> None:
    whole = plan_of(post(server, GREEDY))
    assert whole.finish_reason == "length"
    stop = next(character for character in whole.plan if character != "\ufffd")
    stopped = plan_of(post(server, GREEDY | {"stop": [stop]}))
    assert stopped.finish_reason == "stop"
    assert stopped.plan == whole.plan[: whole.plan.index(stop)]
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]


def test_text_that_looks_like_the_answer_is_only_text(server: LiveServer) -> None:
    task = '{"hidden_state":{"data":""}} \\"data\\":\\"\\" "data":""'
    answer = plan_of(post(server, GREEDY | {"task": task, "task_id": '"data":""'}))
    assert (answer.task, answer.task_id) == (task, '"data":""')
    assert decode_hidden_state(answer.hidden_state).shape == (6, HIDDEN_SIZE)


def test_health_ready_info(server: LiveServer) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json() == {"status": "ready"}
    info = InfoResponse.model_validate_json(server.http.get("/info").content)
    assert info.model_dump() == {
        "model": "tiny",
        "revision": None,
        "hidden_size": HIDDEN_SIZE,
        "vocab_size": 320,
        "dtype": "float32",
        "device": info.device,
        "limits": {
            "max_slots": 4,
            "max_model_len": 512,
            "max_queue": 1024,
            "max_body_bytes": MAX_BODY_BYTES,
            "max_new_tokens": None,
            "request_timeout_s": None,
        },
        "version": "0.0.0",
        "compressors": [],
    }
    assert info.device in {"cpu", "cuda", "mps"}
    assert socket.gethostname() not in server.http.get("/info").text


def test_metrics_count_answers_tokens_and_bytes(server: LiveServer) -> None:
    def counts() -> list[float]:
        labels = [("POST", "200"), ("POST", "422")]
        return [
            *(
                server.metric("latentwire_requests_total", path="/plan_latent", status=status)
                for _, status in labels
            ),
            server.metric("latentwire_requests_total", path="other", status="404"),
            server.metric("latentwire_prompt_tokens_total"),
            server.metric("latentwire_generation_tokens_total"),
            server.metric("latentwire_latent_bytes_total"),
            server.metric("latentwire_e2e_request_latency_seconds_count"),
        ]

    before = counts()
    # A prompt that begins like no other: none of it is in the cache.
    answer = plan_of(post(server, GREEDY | {"prompt_template": "~ {task}"}, k=2))
    post(server, {})
    server.http.get("/secret-in-a-path")
    prompt_tokens = answer.usage.prompt_tokens
    after = counts()
    difference = [b - a for a, b in zip(before, after, strict=True)]
    assert difference == [1, 1, 1, prompt_tokens, 6, 2 * HIDDEN_SIZE * 4, 1]
    text = server.http.get("/metrics").text
    assert "secret" not in text
    assert server.metric("latentwire_requests_running") == 0
    assert server.metric("latentwire_requests_waiting") == 0


def test_openapi_is_3_1_and_lists_every_error(server: LiveServer) -> None:
    assert server.http.get("/docs").status_code == 200
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {"/plan_latent", "/health", "/ready", "/info", "/metrics"}
    codes: set[str] = set()
    for method in ("get", "post"):
        responses = document["paths"]["/plan_latent"][method]["responses"]
        assert set(responses) == {
            *("200", "401", "408", "413", "421", "422", "429", "500", "503", "504")
        }
        plan = responses["200"]["content"]["application/json"]
        assert plan["schema"]["$ref"].endswith("/PlanLatentResponse")
        PlanLatentResponse.model_validate_json(json.dumps(plan["example"]))
        for status in set(responses) - {"200"}:
            problem = responses[status]["content"]["application/problem+json"]
            assert problem["schema"]["$ref"].endswith("/ErrorBody")
            for example in problem["examples"].values():
                body = ErrorBody.model_validate(example["value"])
                assert body.status == int(status)
                codes.add(body.code)
    assert codes >= {
        "invalid-request",
        "prompt-too-long",
        "payload-too-large",
        "queue-full",
        "internal",
        "latent-invalid",
        "not-ready",
        "deadline-exceeded",
    }
    assert "503" in document["paths"]["/ready"]["get"]["responses"]
    names = {p["name"] for p in document["paths"]["/plan_latent"]["get"]["parameters"]}
    assert names >= {"task", "k", "seed", "stop", "top_p", "stream"}


# --- requests that are refused

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
    (TASK % ', "k": 3', "k"),
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
    server: LiveServer, method: str, is_announced: bool
) -> None:
    content = b"".join(chunks()) if is_announced else chunks()
    answer = server.http.request(
        method,
        "/plan_latent?task=x&max_new_tokens=400" if method == "GET" else "/plan_latent",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    problem = assert_problem(answer, 413, "payload-too-large")
    assert str(MAX_BODY_BYTES) in problem.detail
    assert plan_of(post(server, GREEDY))


def test_who_sends_too_large_a_body_to_its_end_sees_why_it_is_refused(server: LiveServer) -> None:
    """Some send all before they read: a connection reset meanwhile would tell them nothing."""
    body = b"x" * 2_000_000
    head = f"POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as connection:
        connection.sendall(head.encode())
        for start in range(0, len(body), 100_000):
            connection.sendall(body[start : start + 100_000])
            # Long enough for a refusal to come back, and for the connection to be closed.
            time.sleep(0.02)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_unknown_paths_and_methods_are_problems(server: LiveServer) -> None:
    assert_problem(server.http.get("/plan"), 404, "not-found")
    answer = server.http.delete("/plan_latent")
    assert_problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["allow"]


# --- life


def test_while_loading_the_service_lives_but_is_not_ready(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Gate()
    load = loading.load_model

    def load_slowly(*args: Any, **kwargs: Any) -> Any:
        held()
        return load(*args, **kwargs)

    monkeypatch.setattr(loading, "load_model", load_slowly)
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

    def submit_and_tell(self: EngineThread, request: Any) -> None:
        submit(self, request)
        submitted.release()

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
    drained = pool.submit(live.serving.drain)
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

    build = loading.build_runner
    monkeypatch.setattr(
        loading,
        "build_runner",
        lambda *args, **kw: GatedRunner(build(*args, **kw), before=break_down),
    )
    live = start().wait_ready()
    assert_problem(post(live, GREEDY), 503, "not-ready")
    assert live.failed.wait(TIMEOUT_S)
    assert isinstance(live.serving.failure, RuntimeError)
    assert assert_problem(live.http.get("/ready"), 503, "not-ready").detail.endswith("failed")


def test_a_latent_that_is_not_finite_is_an_error_never_a_message(
    start: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loading.build_runner
    monkeypatch.setattr(
        loading,
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


# --- what must not leak, and who must not wait


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the service would write to standard error."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PathlessFormatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # The client of this test, not the service, would log the query.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


ABSOLUTE_PATH = re.compile(r"(?<![\w.])/[\w.-]+/[\w./-]+")


def test_the_log_tells_neither_task_nor_query_nor_path(
    start: Callable[..., LiveServer], log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = start().wait_ready()
    secret = {"task": "SECRET task", "task_id": "SECRET", "max_new_tokens": 2}
    plan_of(post(live, secret))
    plan_of(live.http.get("/plan_latent", params=secret))
    post(live, secret | {"SECRET": 1})
    live.http.get("/SECRET?SECRET=1")

    def break_down(*_: object) -> bytes:
        raise RuntimeError("cannot open /home/somebody/models/weights.bin")

    monkeypatch.setattr(wire_formats, "render_plan", break_down)
    problem = assert_problem(post(live, secret), 500, "internal")
    assert problem.error_id is not None
    assert "somebody" not in problem.detail
    assert "RuntimeError" not in problem.model_dump_json()
    lines = log.getvalue()
    assert "POST /plan_latent 200" in lines
    assert "GET /plan_latent 200" in lines
    assert f"ERROR latentwire_service.error_handlers: error {problem.error_id}" in lines
    assert "RuntimeError: cannot open weights.bin" in lines
    assert lines.count("RuntimeError: cannot open") == 1
    assert "SECRET" not in lines
    assert not ABSOLUTE_PATH.findall(lines.replace("/plan_latent", ""))


def test_an_internal_error_leaves_the_connection_usable(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> bytes:
        raise RuntimeError("broken")

    with monkeypatch.context() as broken:
        broken.setattr(wire_formats, "render_plan", break_down)
        assert_problem(post(server, GREEDY), 500, "internal")
    assert plan_of(post(server, GREEDY))


def test_rendering_and_long_prompts_run_beside_the_event_loop(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, int] = {}

    def note(module: Any, name: str) -> None:
        function = getattr(module, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            threads[name] = threading.get_ident()
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    note(rendering, "encode_base64")
    note(intake, "encode_prompt")
    plan_of(post(server, GREEDY))
    assert threads["encode_base64"] != server.thread.ident
    # Long only once it is filled in, and too long for the model: tokenized it is all the same.
    long = {**GREEDY, "task": "Wash the mug. " * 100, "prompt_template": "{task}" * 100}
    assert_problem(post(server, long), 422, "prompt-too-long")
    assert threads["encode_prompt"] != server.thread.ident
