"""A real HTTP server with scripted answers, and both clients behind one interface."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from latentwire import AsyncClient, Client

HIDDEN_SIZE = 3


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    missing_bytes: int = 0
    """The connection closes this many bytes before the announced end of the body."""
    is_silent: bool = False
    """No byte is sent until the test ends."""


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedServer:
    """Sends its scripted answers in order, then repeats the last one."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.script: list[Answer] = []
        self.arrived = threading.Semaphore(0)
        self.is_over = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._make_handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self.is_over.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _make_handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.received.append(Received(self.command, self.path, headers, body))
                server.arrived.release()
                answer = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                if answer.is_silent:
                    server.is_over.wait()
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) + answer.missing_bytes))
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class FakeTime:
    """A clock that only advances by sleeping; `speed` seconds for each."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.speed = 1.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds * self.speed

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


class SyncCaller:
    """Calls one method of a new `Client`."""

    def __init__(self, url: str, time: FakeTime) -> None:
        self.url = url
        self.time = time

    def __call__(self, method: str, *args: Any, client: dict[str, Any], **kwargs: Any) -> Any:
        options: dict[str, Any] = {
            "base_url": self.url,
            "rng": random.Random(7),
            "sleep": self.time.sleep,
            "clock": self.time.clock,
        }
        with Client(**(options | client)) as opened:
            return getattr(opened, method)(*args, **kwargs)


class AsyncCaller(SyncCaller):
    """Calls one method of a new `AsyncClient` in a new event loop."""

    def __call__(self, method: str, *args: Any, client: dict[str, Any], **kwargs: Any) -> Any:
        options: dict[str, Any] = {
            "base_url": self.url,
            "rng": random.Random(7),
            "sleep": self.time.sleep_async,
            "clock": self.time.clock,
        }

        async def call() -> Any:
            async with AsyncClient(**(options | client)) as opened:
                return await getattr(opened, method)(*args, **kwargs)

        return asyncio.run(call())


@pytest.fixture(autouse=True)
def _no_outer_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in list(os.environ):
        if name.startswith("LATENTWIRE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture(params=[SyncCaller, AsyncCaller], ids=["sync", "async"])
def call(request: pytest.FixtureRequest, server: ScriptedServer, fake_time: FakeTime) -> Any:
    """Return a function that calls a method of either client; `client=` are its options."""
    caller = request.param(server.url, fake_time)

    def call_method(method: str, *args: Any, client: Any = None, **kwargs: Any) -> Any:
        return caller(method, *args, client=client or {}, **kwargs)

    return call_method


@pytest.fixture
def refused_url() -> Iterator[str]:
    """An address where nothing listens, held so that no server of another test gets it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def plan_body(k: int | None = None, num_tokens: int = 4, **changes: Any) -> dict[str, Any]:
    num_rows = num_tokens if k is None else min(k, num_tokens)
    matrix = hidden_rows(num_rows)
    body: dict[str, Any] = {
        "id": "plan-1",
        "model": "tiny",
        "task": "Clean the kettle",
        "task_id": None,
        "plan": "1. Fill it.",
        "k": k,
        "hidden_state": {
            "data": base64.b64encode(matrix.tobytes()).decode(),
            "dtype": "float32",
            "byteorder": "little",
            "shape": [num_rows, HIDDEN_SIZE],
        },
        "latent": {
            "layer": "last",
            "normed": True,
            "alignment": "predicts",
            "model": "tiny",
            "revision": None,
        },
        "token_ids": list(range(num_tokens)),
        "finish_reason": "stop",
        "seed": 11,
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": num_tokens,
            "latent_rows": num_rows,
        },
        "timings": {"queue_ms": 0.1, "prefill_ms": 2.0, "decode_ms": 3.0},
    }
    return body | changes


def hidden_rows(num_rows: int) -> np.ndarray:
    """What `plan_body` carries: `[num_rows, HIDDEN_SIZE]` float32."""
    return np.arange(num_rows * HIDDEN_SIZE, dtype="<f4").reshape(num_rows, HIDDEN_SIZE) / 7


def json_answer(body: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(
        status,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )


def problem(status: int, code: str, **changes: Any) -> dict[str, Any]:
    return {"title": "Title", "status": status, "code": code, "detail": "why"} | changes


@pytest.fixture
def wire() -> Any:
    """The builders of this module, for tests (a conftest is not importable by name)."""

    class Wire:
        Answer = Answer
        plan_body = staticmethod(plan_body)
        hidden_rows = staticmethod(hidden_rows)
        json_answer = staticmethod(json_answer)
        problem = staticmethod(problem)

    return Wire
