"""What HTTP adds to the time to first token of a lone request.

    python -m benchmarks.http_ttft --rounds 40

A child process serves the model on a loopback socket; this one has the same engine on a thread. In
turn, the same request goes to the thread and, as a stream, to the service; each is timed until its
first token is there. Both tokenize. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.ours import OverHttp
from benchmarks.workload import TASKS
from latentwire import Client
from latentwire.protocol import PlanLatentRequest
from latentwire_service.engine.process import keep_freed_memory, thread_environment
from latentwire_service.engine.request import Step
from latentwire_service.intake import Ask, build_request
from latentwire_service.loading import Served, load_served
from latentwire_service.settings import Settings

_WAIT_S = 300
_NEW_TOKENS = 4
# The first ones learn the template's prefix, and open the connection.
_WARM_UP = 3


def in_process_ms(served: Served, task: str) -> float:
    """Time to first token of the engine alone."""
    first: list[float] = []
    started = time.perf_counter()

    def note(_step: Step) -> None:
        first.append(time.perf_counter())

    body = PlanLatentRequest(task=task, max_new_tokens=_NEW_TOKENS, seed=0)
    request = build_request(served, Ask(body, None), None, note)
    served.thread.submit(request)
    request.future.result(_WAIT_S)
    return (first[0] - started) * 1e3


def over_http_ms(client: Client, task: str) -> float:
    """Time until a client has the first step."""
    started = time.perf_counter()
    stream = client.stream_plan_latent(task, max_new_tokens=_NEW_TOKENS, seed=0)
    next(iter(stream))
    took_s = time.perf_counter() - started
    for _ in stream:
        pass
    return took_s * 1e3


def main() -> None:
    missing = thread_environment(os.environ)
    if missing:
        # Threads have to wait here as they do in the service, and torch is imported already.
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
    # On a thread that ends, as in the service: libgomp counts the threads of each that computes,
    # and lets them look for work less long when there are more than cores.
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(load_served, settings, lambda _: None, lambda _: None).result()
    service = OverHttp(args.model, args.dtype, args.threads)
    direct, http = [], []
    try:
        for round_ in range(args.rounds + _WARM_UP):
            task = tasks[round_ % len(tasks)]
            direct.append(in_process_ms(served, task))
            http.append(over_http_ms(service.client, task))
    finally:
        service.close()
        served.thread.stop()
    direct, http = direct[_WARM_UP:], http[_WARM_UP:]
    results = {
        "in_process_ms": statistics.median(direct),
        "over_http_ms": statistics.median(http),
        "added_ms": statistics.median(h - d for h, d in zip(http, direct, strict=True)),
        "ratio": statistics.median(http) / statistics.median(direct),
    }
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
