"""nginx with the shipped gateway configuration, in front of two replicas without a model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from latentwire import Client, PayloadTooLargeError
from latentwire.protocol import ErrorBody
from support.child import TIMEOUT_S, Child
from support.network.ports import free_port
from support.processes import fake_service

GATEWAY = Path(__file__).parents[2] / "deploy" / "gateway"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]


@dataclass
class Site:
    url: str
    replicas: list[Child]


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    options: dict[str, Any] = {"flags": ["--max-slots", "8"], "step_s": fake_service.STEP_S}
    options |= getattr(request, "param", {})
    serve = fake_service.command(options["step_s"])
    replicas = [
        Child("--model", "tiny", "--port", "0", *options["flags"], command=serve) for _ in range(2)
    ]
    port = free_port()
    nginx = None
    try:
        addresses = [replica.url.removeprefix("http://") for replica in replicas]
        for replica in replicas:
            with Client(replica.url) as client:
                client.wait_ready(TIMEOUT_S)
        command = configured(tmp_path, port, addresses)
        with (tmp_path / "error.log").open("wb") as errors:
            nginx = subprocess.Popen(command, stderr=errors)
        url = f"http://127.0.0.1:{port}"
        with Client(url) as client:
            client.wait_ready(TIMEOUT_S)
        yield Site(url, replicas)
    finally:
        if nginx is not None:
            nginx.terminate()
            nginx.wait(TIMEOUT_S)
        for replica in replicas:
            replica.close()


def configured(folder: Path, port: int, addresses: list[str]) -> list[str]:
    """Write the shipped files with this port, folder and these replicas; return nginx's command."""
    text = (GATEWAY / "nginx.conf").read_text()
    assert text.count("listen 8080;") == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    text = text.replace("/dev/stdout", f"{folder}/access.log")
    text = text.replace("/dev/stderr", f"{folder}/error.log")
    shipped = (GATEWAY / "upstream.conf").read_text()
    # Some distributions have an nginx that cannot resolve a name repeatedly: list the addresses.
    line = next(line for line in shipped.splitlines() if "server replicas" in line)
    own = [line.replace("replicas:8000 resolve", address) for address in addresses]
    resolver = "include /tmp/resolver.conf;"
    assert resolver in shipped
    shipped = shipped.replace(line, "\n".join(own)).replace(resolver, "")
    (folder / "nginx.conf").write_text(text)
    (folder / "upstream.conf").write_text(shipped)
    assert NGINX is not None
    # Workers of a root process are another user's, who may not enter the folder of a test.
    directives = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
    return [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", directives]


class FakeReplica:
    """Answers every request with one status and counts them."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.num_requests = 0
        replica = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                replica.num_requests += 1
                self.send_response(replica.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def gateway_for(
    folder: Path,
    addresses: list[str],
    change: Callable[[str], str] = str,
    change_upstream: Callable[[str], str] = str,
) -> Iterator[str]:
    """Run nginx before these addresses; the functions edit the shipped files."""
    port = free_port()
    command = configured(folder, port, addresses)
    for name, edit in (("nginx.conf", change), ("upstream.conf", change_upstream)):
        file = folder / name
        file.write_text(edit(file.read_text()))
    with (folder / "error.log").open("wb") as errors:
        nginx = subprocess.Popen(command, stderr=errors)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(transport=httpx.HTTPTransport(retries=8), timeout=TIMEOUT_S) as client:
            assert client.get(f"{url}/gateway/health").status_code == 200
        yield url
    finally:
        nginx.terminate()
        nginx.wait(TIMEOUT_S)


@pytest.mark.parametrize("loading", [1, 3, 7])
def test_a_request_tries_three_replicas_and_its_retries_find_the_loaded_one(
    tmp_path: Path, loading: int
) -> None:
    shipped = (GATEWAY / "upstream.conf").read_text() + (GATEWAY / "nginx.conf").read_text()
    (fail_timeout_s,) = map(int, re.findall(r"fail_timeout=(\d+)s", shipped))
    (retry_after_s,) = map(int, re.findall(r"Retry-After (\d+) always;\n\s+return 503", shipped))
    # The third attempt comes before the first refusals are forgotten.
    assert fail_timeout_s > 2 * retry_after_s
    replicas = [FakeReplica(503) for _ in range(loading)] + [FakeReplica(200)]
    try:
        addresses = [replica.address for replica in replicas]
        # A slow machine must not outlast it.
        never = partial(re.sub, r"fail_timeout=\d+s", "fail_timeout=600s")
        with gateway_for(tmp_path, addresses, change_upstream=never) as url:
            statuses, tried = [], []
            for _ in range(6):
                before = sum(replica.num_requests for replica in replicas)
                statuses.append(httpx.get(f"{url}/info", timeout=TIMEOUT_S).status_code)
                tried.append(sum(replica.num_requests for replica in replicas) - before)
    finally:
        for replica in replicas:
            replica.close()
    assert max(tried) <= 3
    # Two attempts cover six loading replicas.
    assert statuses[2:] == [200] * 4
    # A loading replica is left alone after its refusal. nginx does not count that of a last try.
    assert max(replica.num_requests for replica in replicas[:-1]) <= 2


def test_a_body_beyond_the_gateways_limit_is_refused_by_the_gateway(tmp_path: Path) -> None:
    def limit(text: str) -> str:
        assert "client_max_body_size 192m;" in text
        return text.replace("client_max_body_size 192m;", "client_max_body_size 1m;")

    replica = FakeReplica(200)
    try:
        with gateway_for(tmp_path, [replica.address], limit) as url:
            answer = httpx.post(f"{url}/plan_latent", content=b"x" * 2_000_000, timeout=TIMEOUT_S)
    finally:
        replica.close()
    assert ErrorBody.model_validate_json(answer.content).code == "payload-too-large"
    assert (answer.status_code, replica.num_requests) == (413, 0)


def test_over_the_connection_limit_a_caller_gets_429_and_the_reason(tmp_path: Path) -> None:
    def limit_one(text: str) -> str:
        assert "limit_conn callers 1024;" in text
        return text.replace("limit_conn callers 1024;", "limit_conn callers 1;")

    replica = FakeReplica(200)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> Iterator[bytes]:
        yield b"x"
        entered.set()
        leave.wait(TIMEOUT_S)
        yield b"x"

    try:
        with (
            gateway_for(tmp_path, [replica.address], limit_one) as url,
            ThreadPoolExecutor(1) as pool,
        ):
            held = pool.submit(httpx.post, f"{url}/plan_latent", content=hold(), timeout=TIMEOUT_S)
            assert entered.wait(TIMEOUT_S)
            # nginx counts a connection once it has read the request's head.
            deadline = time.monotonic() + TIMEOUT_S / 2
            while time.monotonic() < deadline:
                refused = httpx.get(f"{url}/info", timeout=TIMEOUT_S)
                if refused.status_code != 200:
                    break
            leave.set()
            held.result(TIMEOUT_S)
    finally:
        leave.set()
        replica.close()
    body = ErrorBody.model_validate_json(refused.content)
    assert (refused.status_code, body.status, body.code) == (429, 429, "queue-full")
    assert "connections from one address" in body.detail
    assert "no replica" not in body.detail
    assert refused.headers["retry-after"] == "1"
    assert len(refused.headers.get_list("x-request-id")) == 1


def test_a_replica_killed_under_load_fails_no_request(site: Site) -> None:
    counted = threading.Semaphore(0)

    def send(number: int) -> tuple[int, list[int]]:
        body = {"task": f"Task {number}", "max_new_tokens": 60, "seed": number}
        post = partial(httpx.post, f"{site.url}/plan_latent?k=1", json=body, timeout=TIMEOUT_S)
        try:
            answer = post()
        except httpx.RemoteProtocolError:
            # Killed between the head of its answer and the end: no gateway can take a head back.
            answer = post()
        counted.release()
        return answer.status_code, answer.json().get("token_ids", [])

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(send, number) for number in range(60)]
        for _ in range(10):
            assert counted.acquire(timeout=TIMEOUT_S)
        site.replicas[0].signal(signal.SIGKILL)
        results = [answer.result(TIMEOUT_S) for answer in answers]
        again = list(pool.map(send, range(60)))
    assert [status for status, _ in results] == [200] * 60
    # The surviving replica gives the same answers.
    assert results == again


def test_a_draining_replica_fails_no_request(site: Site) -> None:
    with ThreadPoolExecutor(4) as pool:
        body = {"task": "x", "max_new_tokens": 400}
        running = [
            pool.submit(httpx.post, f"{site.url}/plan_latent?k=1", json=body, timeout=TIMEOUT_S)
            for _ in range(4)
        ]
        site.replicas[1].signal()
        site.replicas[1].wait_line("draining")
        with Client(site.url, max_retries=0) as client:
            for number in range(10):
                client.plan_latent(f"Task {number}", max_new_tokens=3)
        assert [answer.result(TIMEOUT_S).status_code for answer in running] == [200] * 4
    assert site.replicas[1].wait() == 0


@pytest.mark.parametrize(
    "site", [{"flags": ["--max-slots", "1", "--max-queue", "1"]}], indirect=True
)
def test_a_full_replicas_429_reaches_the_client(site: Site) -> None:
    """The gateway does not treat a full replica as a dead one."""

    def send(number: int) -> httpx.Response:
        body = {"task": f"Task {number}", "max_new_tokens": 100}
        return httpx.post(f"{site.url}/plan_latent?k=1", json=body, timeout=TIMEOUT_S)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(80)))
    assert {answer.status_code for answer in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["code"] == "queue-full"
            assert "Retry-After" in answer.headers


# The whole stream takes longer than any test waits, also for a reader that is slow to close it.
@pytest.mark.parametrize("site", [{"step_s": 0.3}], indirect=True)
def test_the_gateway_forwards_each_event_at_once(site: Site) -> None:
    with Client(site.url) as client:
        stream = client.stream_plan_latent("x", k=2, max_new_tokens=400, do_sample=False)
        with stream:
            steps = iter(stream)
            first = next(steps)
        # The stream was closed after its first step, so the replica soon frees the slot.
        assert first.index == 0
    urls = [replica.url for replica in site.replicas]
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        texts = [httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text for url in urls]
        if all("latentwire_requests_running 0.0" in text for text in texts):
            break
        assert time.monotonic() < deadline, texts
        time.sleep(0.01)
    made = sum(
        float(line.split()[-1])
        for text in texts
        for line in text.splitlines()
        if line.startswith("latentwire_generation_tokens_total ")
    )
    assert made < 400


def test_the_gateways_own_errors_are_problem_details_and_its_log_has_no_task(
    site: Site, tmp_path: Path
) -> None:
    get = partial(httpx.get, timeout=TIMEOUT_S)
    answer = get(f"{site.url}/info", headers={"X-Request-Id": "agent-1"})
    assert answer.headers["x-request-id"] == "agent-1"
    assert answer.headers.get_list("x-request-id") == ["agent-1"]
    hidden = get(f"{site.url}/metrics")
    with Client(site.url, max_retries=0) as client, pytest.raises(PayloadTooLargeError):
        client.plan_latent("x" * 3_000_000)
    query: dict[str, str | int] = {"task": "SECRET", "max_new_tokens": 1}
    get(f"{site.url}/plan_latent", params=query)
    for replica in site.replicas:
        replica.signal(signal.SIGKILL)
        replica.wait()
    gone = get(f"{site.url}/plan_latent", params=query)
    assert gone.headers["retry-after"] == "2"
    for own, code in ((hidden, "not-found"), (gone, "not-ready")):
        body = ErrorBody.model_validate_json(own.content)
        assert (body.status, body.code) == (own.status_code, code)
        assert own.headers["content-type"] == "application/problem+json"
        assert len(own.headers.get_list("x-request-id")) == 1
    deadline = time.monotonic() + TIMEOUT_S
    # nginx writes the line of a request after it has sent the answer.
    while "GET /plan_latent 503" not in (log := (tmp_path / "access.log").read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.01)
    assert "agent-1 GET /info 200" in log
    assert "SECRET" not in log + (tmp_path / "error.log").read_text()
