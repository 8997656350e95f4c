"""The time that HTTP adds to the first token of a lone request.

    python -m benchmarks.http_ttft --rounds 40

A child process serves the model on a loopback socket, and this process has the same engine on a
thread. In each round, the same request goes to the thread and, as a stream, to the service: over a
bare socket, which shows the time of the service, and through `Client`, which adds its own. The
order changes from round to round, because caches favour the last one. Each time runs until the
first token arrives, and includes tokenizing the prompt. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.ours import OverHttp
from benchmarks.workload import TASKS
from latentwire import Client
from latentwire.protocol import PlanLatentRequest
from latentwire_service.engine.backend import Backend, Step
from latentwire_service.engine.hf.cpu.cpu_tuning import keep_freed_memory, thread_environment
from latentwire_service.engine_factory import backend_factory
from latentwire_service.request_builder import Submission, build_spec
from latentwire_service.settings import Settings

_WAIT_S = 300
_NEW_TOKENS = 4
# The first rounds compute the template's prefix and open the connection.
_WARM_UP = 3


def in_process_ms(backend: Backend, task: str) -> float:
    """Return the time to first token of the engine alone."""
    first: list[float] = []
    started = time.perf_counter()

    def note(_step: Step) -> None:
        first.append(time.perf_counter())

    body = PlanLatentRequest(task=task, max_new_tokens=_NEW_TOKENS, seed=0)
    spec = build_spec(backend, Submission(body, None), None)
    backend.submit(spec, note).future.result(_WAIT_S)
    return (first[0] - started) * 1e3


def over_a_socket_ms(connection: socket.socket, task: str) -> float:
    """Return the time until a socket has the whole first event."""
    started = time.perf_counter()
    fields = {"task": task, "max_new_tokens": _NEW_TOKENS, "seed": 0, "stream": True}
    body = json.dumps(fields).encode()
    head = (
        "POST /plan_latent HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    received = b""
    while b"\n\n" not in received:
        received += connection.recv(65536)
    took_s = time.perf_counter() - started
    while not received.endswith(b"\r\n0\r\n\r\n"):
        received += connection.recv(65536)
    assert b"event: done" in received
    return took_s * 1e3


def through_client_ms(client: Client, task: str) -> float:
    """Return the time until a client has the first step."""
    started = time.perf_counter()
    stream = client.stream_plan_latent(task, max_new_tokens=_NEW_TOKENS, seed=0)
    next(iter(stream))
    took_s = time.perf_counter() - started
    for _ in stream:
        pass
    return took_s * 1e3


def added_ms(timings: Sequence[float], direct: Sequence[float]) -> float:
    """Return the median over rounds of the time beyond that of the engine alone."""
    return statistics.median(t - d for t, d in zip(timings, direct, strict=True))


def main() -> None:
    missing = thread_environment(os.environ)
    if missing:
        # Threads must wait as they do in the service, but torch is imported already.
        command = [sys.executable, "-m", "benchmarks.http_ttft", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | missing)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    tasks = [json.loads(line)["task"] for line in TASKS.read_text("utf-8").splitlines() if line]
    keep_freed_memory()
    settings = Settings(model=args.model, dtype=args.dtype, threads=args.threads)
    # Load on a thread that ends, as the service does. libgomp counts the threads of every thread
    # that computes, and shortens their spinning when there are more threads than cores.
    with ThreadPoolExecutor(1) as pool:
        create_backend = backend_factory(settings)
        backend = pool.submit(create_backend, lambda _: None, lambda _: None).result()
        pool.submit(backend.load).result()
    service = OverHttp(args.model, args.dtype, args.threads)
    connection = socket.create_connection(("127.0.0.1", service.port))
    ways = {
        "direct": partial(in_process_ms, backend),
        "socket": partial(over_a_socket_ms, connection),
        "client": partial(through_client_ms, service.client),
    }
    orders = itertools.cycle(itertools.permutations(ways))
    timings: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for round_ in range(args.rounds + _WARM_UP):
            task = tasks[round_ % len(tasks)]
            for name in next(orders):
                timings[name].append(ways[name](task))
    finally:
        connection.close()
        service.close()
        backend.drain(None)
    direct, bare, client = (timings[name][_WARM_UP:] for name in ("direct", "socket", "client"))
    results = {
        "in_process_ms": statistics.median(direct),
        "socket_ms": statistics.median(bare),
        "client_ms": statistics.median(client),
        "service_adds_ms": added_ms(bare, direct),
        "service_and_client_add_ms": added_ms(client, direct),
        "ratio": statistics.median(bare) / statistics.median(direct),
    }
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
