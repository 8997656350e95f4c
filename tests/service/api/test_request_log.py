"""The id of a request, and its line in the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from latentwire import Client
from latentwire_service.api.request_log import RequestLog
from latentwire_service.settings import Settings
from latentwire_service.telemetry.logs import JsonFormatter, PathlessFormatter, add_request_id
from support.backends import BACKENDS
from support.live_server import LiveServer, RouteLines
from support.requests import GREEDY

pytestmark = pytest.mark.backends("fake")

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server(folder: Path, backend: str) -> Iterator[LiveServer]:
    settings = Settings(model=str(folder), max_slots=2, api_key=KEYS)
    live = LiveServer(settings, BACKENDS[backend])
    yield live.wait_ready()
    live.close()


@pytest.mark.parametrize("path", ["/health", "/nothing", "/info"])
def test_every_answer_has_a_request_id(server: LiveServer, path: str) -> None:
    first, second = (httpx.get(f"{server.url}{path}").headers["x-request-id"] for _ in range(2))
    assert first != second
    given = httpx.get(f"{server.url}{path}", headers={"X-Request-Id": "Agent-7:a.b_c"})
    assert given.headers["x-request-id"] == "Agent-7:a.b_c"


@pytest.mark.parametrize("value", ["a b", "x" * 129, "", "a\tb", 'a"b'])
def test_an_id_that_does_not_fit_a_log_line_is_replaced(server: LiveServer, value: str) -> None:
    answer = server.http.get("/health", headers={"X-Request-Id": value})
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.fixture
def written(server: LiveServer) -> Iterator[Callable[[logging.Formatter], io.StringIO]]:
    # No line of an earlier test's request is among those of this one.
    server.settle()
    handlers: list[logging.Handler] = []
    root = logging.getLogger()
    level = root.level

    def listen(formatter: logging.Formatter) -> io.StringIO:
        lines = io.StringIO()
        handler = logging.StreamHandler(lines)
        handler.setFormatter(formatter)
        handler.addFilter(add_request_id)
        handlers.append(handler)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        return lines

    yield listen
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(level)


def test_a_json_log_names_the_request_its_key_and_its_error(
    server: LiveServer, written: Callable[..., io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = written(JsonFormatter())

    def break_down(*_: object) -> bytes:
        raise RuntimeError("cannot open /home/somebody/weights.bin")

    monkeypatch.setattr("latentwire_service.api.wire_formats.render_plan", break_down)
    with RouteLines() as logged:
        server.http.post("/plan_latent", json=GREEDY, headers={"X-Request-Id": "r-1"})
        logged.wait(1)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    own = [record for record in records if record.get("request_id") == "r-1"]
    (error,) = (record for record in own if record["level"] == "error")
    (answered,) = (record for record in own if "status" in record)
    assert error["exception"].endswith("RuntimeError: cannot open weights.bin")
    assert (answered["route"], answered["status"]) == ("/plan_latent", 500)
    assert answered["caller"].startswith("key-")
    assert "first-key" not in lines.getvalue()


def test_a_text_line_ends_with_the_request_id(
    server: LiveServer, written: Callable[..., io.StringIO]
) -> None:
    lines = written(PathlessFormatter("%(message)s%(for_request)s"))
    with RouteLines() as logged:
        server.http.get("/info", headers={"X-Request-Id": "r-2"})
        logged.wait(1)
    assert any(
        line.startswith("GET /info 200 ") and line.endswith("[r-2]")
        for line in lines.getvalue().splitlines()
    )


@pytest.mark.parametrize(
    ("route", "status", "level"),
    [
        ("/health", 200, logging.DEBUG),
        ("/ready", 200, logging.DEBUG),
        ("/ready", 503, logging.DEBUG),
        ("/health", 503, logging.INFO),
        ("/metrics", 200, logging.DEBUG),
        ("/metrics", 401, logging.INFO),
        ("/plan_latent", 200, logging.INFO),
    ],
)
def test_routine_probes_write_no_line_at_the_default_level(
    caplog: pytest.LogCaptureFixture, route: str, status: int, level: int
) -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        scope["route"] = SimpleNamespace(path=route)
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_message: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": route, "headers": []}
    caplog.set_level(logging.DEBUG)
    asyncio.run(RequestLog(app, lambda _path, _status: None)(scope, receive, send))
    (line,) = [record for record in caplog.records if hasattr(record, "route")]
    assert (line.levelno, line.message.rsplit(" ", 2)[0]) == (level, f"GET {route} {status}")


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_log_line_of_an_answer_has_its_id(
    server: LiveServer, written: Callable[..., io.StringIO], is_stream: bool
) -> None:
    objects, lines = written(JsonFormatter()), written(PathlessFormatter("%(message)s"))
    with RouteLines() as logged:
        with Client(server.url, api_key=KEYS[0]) as client:
            if is_stream:
                stream = client.stream_plan_latent(**GREEDY)
                assert list(stream)
                plan_id = stream.plan.id
            else:
                plan_id = client.plan_latent(**GREEDY).id
        logged.wait(1)
        server.http.get("/info")
        logged.wait(1)
    answered = [json.loads(line) for line in objects.getvalue().splitlines()]
    ids = {record["route"]: record.get("plan_id") for record in answered if "route" in record}
    assert ids == {"/plan_latent": plan_id, "/info": None}
    assert plan_id.startswith("plan-")
    texts = [line.partition(" ms") for line in lines.getvalue().splitlines()]
    assert [after.strip() for _, found, after in texts if found] == [plan_id, ""]
