"""`latentwire serve` as a process that is told to end: what it has accepted gets its answer."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from latentwire import Client, NotReadyError
from support.child import TIMEOUT_S, Child
from support.processes import fake_service

pytestmark = pytest.mark.slow


def long_request(url: str, max_new_tokens: int) -> httpx.Response:
    body = {"task": "x", "max_new_tokens": max_new_tokens, "do_sample": False}
    return httpx.post(f"{url}/plan_latent", params={"k": 1}, json=body, timeout=TIMEOUT_S)


def wait_load(url: str, num_running: int, num_waiting: int = 0) -> None:
    """Poll the gauges, because another process has no event to wait on."""
    running = f"latentwire_requests_running {num_running}.0"
    waiting = f"latentwire_requests_waiting {num_waiting}.0"
    deadline = time.monotonic() + TIMEOUT_S
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
        while True:
            text = http.get("/metrics").text
            if running in text and waiting in text:
                return
            assert time.monotonic() < deadline, text
            time.sleep(0.01)


# No token follows a request's first before a line of the standard input says so, or before the
# accepted requests are told to fail. A thread in `sys.stdin` could not be there at the end.
HELD_STEPS_MAIN = """
import os, sys, threading
from latentwire_service import __main__
from latentwire_service.engine.engine import Engine
from latentwire_service.engine.engine_thread import EngineThread

may_pass = threading.Event()
decode, abort = Engine._decode, EngineThread.abort

def decode_when_told(*args):
    may_pass.wait()
    return decode(*args)

def abort_and_pass(*args):
    abort(*args)
    may_pass.set()

def listen():
    if os.read(0, 1):
        may_pass.set()

Engine._decode, EngineThread.abort = decode_when_told, abort_and_pass
threading.Thread(target=listen, daemon=True).start()
sys.exit(__main__.main(sys.argv[1:]))
"""


def test_sigterm_finishes_running_requests_refuses_new_ones_and_exits_0(
    folder: Path, serve: Callable[..., Child]
) -> None:
    flags = ("--port", "0", "--threads", "1", "--max-slots", "2")
    child = serve("--model", str(folder), *flags, command=("-c", HELD_STEPS_MAIN))
    url = child.url
    with Client(url, max_retries=0) as client, ThreadPoolExecutor(3) as pool:
        client.wait_ready(TIMEOUT_S)
        # One of them waits for a slot. It was accepted, so it is finished too.
        running = [pool.submit(long_request, url, 70) for _ in range(3)]
        wait_load(url, num_running=2, num_waiting=1)
        child.signal()
        child.wait_line("draining")
        assert client.health()
        assert not client.ready()
        with pytest.raises(NotReadyError, match="draining") as refused:
            client.plan_latent("y")
        assert refused.value.retry_after_s
        child.tell("run")
        for future in running:
            answer = future.result(TIMEOUT_S)
            assert answer.status_code == 200
            assert answer.json()["usage"]["completion_tokens"] == 70
    assert child.wait() == 0, child.output
    assert "Traceback" not in child.output


def test_a_second_signal_ends_the_service_at_once(
    folder: Path, serve: Callable[..., Child]
) -> None:
    child = serve(
        *("--model", str(folder), "--port", "0", "--max-model-len", "40000", "--threads", "1")
    )
    url = child.url
    with Client(url) as client:
        client.wait_ready(TIMEOUT_S)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(long_request, url, 39_000)
        wait_load(url, num_running=1)
        child.signal()
        child.wait_line("draining")
        child.signal()
        assert child.wait() == 128 + signal.SIGTERM, child.output
        assert isinstance(running.exception(TIMEOUT_S), httpx.TransportError)


# Says at its end what a terminal's second hang-up would do to it.
HUNG_UP_MAIN = (
    "import atexit, signal, sys; "
    "atexit.register(lambda: print(repr(signal.getsignal(signal.SIGHUP)), file=sys.stderr)); "
)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without terminals that hang up")
def test_a_second_hang_up_does_not_end_the_service_while_it_ends(
    serve: Callable[..., Child],
) -> None:
    _, code = fake_service.COMMAND
    child = serve("--model", "tiny", "--port", "0", command=("-c", HUNG_UP_MAIN + code))
    with Client(child.url) as client:
        client.wait_ready(TIMEOUT_S)
    child.signal(signal.SIGHUP)
    assert child.wait() == 0, child.output
    assert child.lines[-1] == "<Handlers.SIG_IGN: 1>\n", child.output


def read_stream(url: str, number: int, max_new_tokens: int) -> str:
    """Read a stream to its end, and return how it ended."""
    with Client(url, max_retries=0) as client:
        stream = client.stream_plan_latent(
            f"Task {number}", k=1, max_new_tokens=max_new_tokens, do_sample=False
        )
        try:
            list(stream)
        except NotReadyError as error:
            return error.code
        return stream.plan.finish_reason


@pytest.mark.parametrize(
    ("drain_timeout", "max_new_tokens", "ends"),
    [("60", 100, {"length", "stop"}), ("0.2", 3000, {"not-ready", "stop"})],
)
def test_sigterm_ends_20_streams_with_a_result_or_an_error_each(
    folder: Path,
    serve: Callable[..., Child],
    drain_timeout: str,
    max_new_tokens: int,
    ends: set[str],
) -> None:
    child = serve(
        *("--model", str(folder), "--port", "0", "--threads", "1", "--max-slots", "16"),
        *("--drain-timeout", drain_timeout),
        command=("-c", HELD_STEPS_MAIN),
    )
    url = child.url
    with Client(url) as client:
        client.wait_ready(TIMEOUT_S)
    with ThreadPoolExecutor(20) as pool:
        running = [pool.submit(read_stream, url, n, max_new_tokens) for n in range(20)]
        wait_load(url, num_running=16, num_waiting=4)
        child.signal()
        child.wait_line("draining")
        if drain_timeout == "60":
            child.tell("run")
        assert {future.result(TIMEOUT_S) for future in running} <= ends
    assert child.wait() == 0, child.output
    assert "Traceback" not in child.output
