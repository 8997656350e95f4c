"""What HTTP adds to the time to first token of a lone request.

    python -m benchmarks.http_ttft --rounds 40

One process serves the model on a loopback socket. In turn, the same request goes to the engine's
thread directly and through a client as a stream; each is timed until its first token is there. Both
tokenize. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import threading
import time

import uvicorn

from benchmarks.workload import TASKS
from latentwire import Client
from latentwire.protocol import PlanLatentRequest
from latentwire_service.app import create_app
from latentwire_service.engine.process import keep_freed_memory
from latentwire_service.engine.request import Step
from latentwire_service.intake import Ask, build_request
from latentwire_service.metrics import Metrics
from latentwire_service.policy import policy_of
from latentwire_service.serving import Serving
from latentwire_service.settings import Settings

_WAIT_S = 300
_NEW_TOKENS = 4


class Service:
    """The service on a thread of this process, and the engine behind it."""

    def __init__(self, settings: Settings) -> None:
        metrics = Metrics()
        self._serving = Serving(settings, metrics, "0", lambda: None)
        app = create_app(self._serving, metrics, policy_of(settings), "0")
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        self.client = Client(f"http://127.0.0.1:{self._socket.getsockname()[1]}")
        self.client.wait_ready(_WAIT_S)

    def in_process_ms(self, task: str) -> float:
        """Time to first token of the engine alone."""
        first: list[float] = []
        started = time.perf_counter()

        def note(_step: Step) -> None:
            first.append(time.perf_counter())

        body = PlanLatentRequest(task=task, max_new_tokens=_NEW_TOKENS, seed=0)
        served = self._serving._require()
        request = build_request(served, Ask(body, None), None, note)
        served.thread.submit(request)
        request.future.result(_WAIT_S)
        return (first[0] - started) * 1e3

    def over_http_ms(self, task: str) -> float:
        """Time until a client has the first step."""
        started = time.perf_counter()
        stream = self.client.stream_plan_latent(task, max_new_tokens=_NEW_TOKENS, seed=0)
        next(iter(stream))
        took_s = time.perf_counter() - started
        for _ in stream:
            pass
        return took_s * 1e3

    def close(self) -> None:
        """Stop it."""
        self.client.close()
        self._serving.drain()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    tasks = [json.loads(line)["task"] for line in TASKS.read_text("utf-8").splitlines() if line]
    keep_freed_memory()
    service = Service(Settings(model=args.model, dtype=args.dtype, threads=args.threads))
    direct, http = [], []
    try:
        for round_ in range(args.rounds + 3):
            task = tasks[round_ % len(tasks)]
            pair = (service.in_process_ms(task), service.over_http_ms(task))
            # The first ones learn the template's prefix and open the connection.
            if round_ >= 3:
                direct.append(pair[0])
                http.append(pair[1])
    finally:
        service.close()
    added = [over - under for over, under in zip(http, direct, strict=True)]
    results = {
        "in_process_ms": statistics.median(direct),
        "over_http_ms": statistics.median(http),
        "added_ms": statistics.median(added),
        "ratio": statistics.median(http) / statistics.median(direct),
    }
    print(json.dumps({name: round(value, 3) for name, value in results.items()}))


if __name__ == "__main__":
    main()
