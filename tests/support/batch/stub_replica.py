"""A replica without a model: it speaks the wire contract over a real socket, by arithmetic.

Its latents are a pure function of task, seed and position, so a test can compute every row of a
dataset. In a test it runs on a thread and takes scripted faults. As a program it can be killed:
`PYTHONPATH=tests python -m support.batch.stub_replica --port 8100 --hidden-size 896 --steps 256`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit

import safetensors.numpy

from support.batch.stub_answers import Behaviour, answer_of, info
from support.gate import TIMEOUT_S

_SAFETENSORS = "application/x-safetensors"
_CODES = {
    401: "unauthorized",
    422: "prompt-too-long",
    429: "queue-full",
    500: "internal",
    503: "not-ready",
}
_REFUSAL = [
    ("info", "latentwire_service.server", "listening"),
    ("error", "latentwire_service.model_service", "cannot serve the model: none there"),
    *[("info", "uvicorn.error", "an ERROR in the text only")] * 20,
]


class StubReplica:
    """A stub on a thread of this process, on a free loopback port.

    Attributes:
        behaviour: what it does.
        received: (task_id, seed) of every plan request, in order of arrival.
        num_arrived: how often each task id came, to a dead stub too.
        dates: the `date` of each of them; None where it has none.
        answered: task ids answered with a plan, noted before the answer is sent.
        sent_media_types: of the answers with a plan.
        arrived: set at every plan request.
    """

    def __init__(
        self, behaviour: Behaviour | None = None, port: int = 0, listen_fd: int | None = None
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.received: list[tuple[str | None, int]] = []
        self.num_arrived: Counter[str | None] = Counter()
        self.dates: list[str | None] = []
        self.answered: list[str | None] = []
        self.sent_media_types: set[str] = set()
        self.arrived = threading.Event()
        self.num_in_flight = self.most_in_flight = 0
        self.num_deaths = 0
        # When this life of the process began; None until `/info` was requested: a client that takes
        # long for an answer would not notice that a life of milliseconds was another one.
        self._started_s: float | None = None
        # After this many answers the stub sets `stalled`, and waits for `resume`.
        self.stall_after: int | None = None
        self.stalled = threading.Event()
        self.lock = threading.Condition()
        kind = _ServerOfGivenPort if port else _Server
        self._server = kind(("127.0.0.1", port), _Handler, bind_and_activate=listen_fd is None)
        if listen_fd is not None:
            self._server.inherit(listen_fd)
        self._server.stub = self
        self.port = self._server.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StubReplica:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.behaviour.gate is not None:
            self.behaviour.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        self._server.serve_forever(0.5)

    def wait_received(self, count: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.received) >= count, timeout=TIMEOUT_S)

    def wait_answered(self, count: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.answered) >= count, timeout=TIMEOUT_S)

    def die(self, life: int | None = None) -> None:
        """End with all that is in flight; come back if the behaviour says so.

        Args:
            life: that ends, a number of deaths; None: the present one.
        """
        with self.lock:
            if self.behaviour.is_dead or life not in (None, self.num_deaths):
                return
            self.num_deaths += 1
            self.behaviour.is_dead = True
        if self.behaviour.exit_on_death:
            os._exit(1)
        if self.behaviour.restart_s is not None:
            threading.Timer(self.behaviour.restart_s, self.revive).start()

    def revive(self) -> None:
        with self.lock:
            self._started_s = None
            self.behaviour.is_dead = False

    def uptime(self) -> dict[str, float]:
        if not self.behaviour.states_uptime:
            return {}
        with self.lock:
            now_s = time.monotonic()
            if self._started_s is None:
                self._started_s = now_s
            return {"uptime_s": now_s - self._started_s}

    def resume(self) -> None:
        with self.lock:
            self.stall_after = None
            self.stalled.clear()
            self.lock.notify_all()

    def wait_while_stalled(self) -> None:
        with self.lock:
            while self.stall_after is not None and len(self.answered) >= self.stall_after:
                self.stalled.set()
                self.lock.wait()

    def received_ids(self) -> list[str | None]:
        return [task_id for task_id, _ in self.received]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    stub: StubReplica

    def inherit(self, fd: int) -> None:
        self.socket.close()
        self.socket = socket.socket(fileno=fd)
        self.server_address = self.socket.getsockname()
        self.server_activate()

    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address  # A client that went away is part of many tests.


class _ServerOfGivenPort(_Server):
    # The program that gives it may have reserved it.
    allow_reuse_port = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        stub = self.server.stub
        if self._is_gone():
            return
        path = urlsplit(self.path).path
        if path == "/ready" and not stub.behaviour.is_ready:
            self._problem(503, "not-ready")
        elif path == "/ready":
            self._send(200, {"status": "ready"})
        elif path == "/health":
            self._send(200, {"status": "ok"})
        elif path == "/info" and stub.behaviour.info_faults:
            status = stub.behaviour.info_faults.popleft()
            if status:
                self._problem(status, "not-ready")
            else:
                self.close_connection = True
        elif path == "/info":
            self._send(200, info(stub.behaviour) | stub.uptime())
        else:
            self._problem(404, "not-found")

    def do_POST(self) -> None:
        stub, behaviour = self.server.stub, self.server.stub.behaviour
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with stub.lock:
            stub.num_arrived[body.get("task_id")] += 1
            life = stub.num_deaths
        if self._is_gone():
            return
        with stub.lock:
            stub.num_in_flight += 1
            stub.most_in_flight = max(stub.most_in_flight, stub.num_in_flight)
            stub.received.append((body.get("task_id"), body["seed"]))
            stub.dates.append(body.get("date"))
            status = self._fault(body["task"])
            stub.lock.notify_all()
        stub.arrived.set()
        if behaviour.gate is not None:
            behaviour.gate.wait()
        if behaviour.delay_s:
            time.sleep(behaviour.delay_s)
        stub.wait_while_stalled()
        with stub.lock:
            stub.num_in_flight -= 1
        if body["task"] in behaviour.killers:
            # Not another life, which began while this row took its time.
            stub.die(life)
        if stub.num_deaths > life:
            self._end_in_flight()
        else:
            self._reply(body, status)

    def _end_in_flight(self) -> None:
        if self.server.stub.behaviour.tells_why:
            self._problem(503, "not-ready", {"engine_failed": True})
        else:
            self.close_connection = True

    def _reply(self, body: dict[str, object], status: int | None) -> None:
        stub, behaviour = self.server.stub, self.server.stub.behaviour
        if self._is_gone():
            return
        if behaviour.refused_field in body:
            self._problem(422, "invalid-request", {"field": behaviour.refused_field})
            return
        if status is not None:
            self._problem(status, _CODES[status])
            return
        query = parse_qs(urlsplit(self.path).query)
        k = int(query["k"][0]) if "k" in query else None
        with stub.lock:
            # Decided under the lock: exactly `die_after` answers are sent.
            if behaviour.die_after is not None and len(stub.answered) >= behaviour.die_after:
                self.close_connection = True
                return
            stub.answered.append(str(body.get("task_id")))
            is_last = len(stub.answered) == behaviour.die_after
            if is_last:
                behaviour.is_dead = True
            stub.lock.notify_all()
        answer, matrix = answer_of(behaviour, body, k)
        if not behaviour.speaks_json_only and _SAFETENSORS in self.headers["accept"]:
            metadata = {"response": json.dumps(answer)}
            content = safetensors.numpy.save({"hidden_state": matrix}, metadata)
            stub.sent_media_types.add(_SAFETENSORS)
            self._send_bytes(200, content, _SAFETENSORS)
        else:
            stub.sent_media_types.add("application/json")
            data = base64.b64encode(matrix.astype("<f4").tobytes()).decode()
            answer["hidden_state"] |= {"data": data}
            self._send(200, answer)
        if is_last and behaviour.exit_on_death:
            os._exit(9)
        if len(stub.answered) == behaviour.stop_after:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _fault(self, task: str) -> int | None:
        behaviour = self.server.stub.behaviour
        expected = behaviour.api_key and f"Bearer {behaviour.api_key}"
        if expected and self.headers.get("authorization") != expected:
            return 401
        if behaviour.faults:
            return behaviour.faults.popleft()
        if behaviour.task_faults.get(task):
            return behaviour.task_faults[task].pop(0)
        return None

    def _is_gone(self) -> bool:
        if self.server.stub.behaviour.is_dead:
            self.close_connection = True
        return self.server.stub.behaviour.is_dead

    def _problem(
        self, status: int, code: str, members: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        detail = f"scripted {code}"
        problem = {"title": code, "status": status, "code": code, "detail": detail, **members}
        headers = {"Retry-After": "0.01"} if status in (429, 503) else {}
        self._send(status, problem, "application/problem+json", headers)

    def _send(
        self,
        status: int,
        value: object,
        media_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._send_bytes(status, json.dumps(value).encode(), media_type, headers)

    def _send_bytes(
        self, status: int, payload: bytes, media_type: str, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(payload)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(payload)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one, named on stdout")
    parser.add_argument("--listen-fd", type=int, default=None, help="an inherited socket")
    parser.add_argument("--hidden-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=None, help="tokens per row; absent: varies")
    parser.add_argument("--max-slots", type=int, default=4)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--die-after", type=int, default=None, help="answers before it dies")
    parser.add_argument("--stop-after", type=int, default=None, help="answers before it hangs")
    parser.add_argument("--killer", action="append", default=[], help="task that ends it")
    parser.add_argument("--not-ready", action="store_true", help="never become ready")
    parser.add_argument("--refuse-model", action="store_true", help="log like a failed load, exit")
    args = parser.parse_args()
    if args.refuse_model:
        for level, logger, message in _REFUSAL:
            record = {"time": "t", "level": level, "logger": logger, "message": message}
            sys.stderr.write(json.dumps(record) + "\n")
        sys.exit(2)
    behaviour = Behaviour(
        hidden_size=args.hidden_size,
        steps=args.steps,
        max_slots=args.max_slots,
        delay_s=args.delay,
        die_after=args.die_after,
        stop_after=args.stop_after,
        killers=frozenset(args.killer),
        exit_on_death=True,
        is_ready=not args.not_ready,
    )
    stub = StubReplica(behaviour, args.port, args.listen_fd)
    sys.stdout.write(f"{stub.port}\n")
    sys.stdout.flush()
    stub.serve_forever()


if __name__ == "__main__":
    main()
