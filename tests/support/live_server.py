"""The whole service on a real socket, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from functools import partial
from types import TracebackType
from typing import Self

import httpx
import uvicorn

from latentwire import Client
from latentwire_service.api.access_policy import policy_of
from latentwire_service.api.app import create_app
from latentwire_service.compression.catalog import load_catalog
from latentwire_service.model_service import ModelService, Observers
from latentwire_service.server import http_config
from latentwire_service.service_info import service_info
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics
from support.backends import BACKENDS, NO_FAULTS, Faults, MakeFactory, Watch, watched
from support.gate import TIMEOUT_S

# Between two looks at something that another thread changes, in seconds: many tests start a server.
_POLL_S = 0.01


class _PromptServer(uvicorn.Server):
    """Ends soon after it is told to; uvicorn itself looks ten times a second."""

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await asyncio.sleep(_POLL_S)


class LiveServer:
    """A running service.

    Args:
        settings: of the service.
        make_factory: makes the factory of its backend.
        faults: what the backend does wrong or late.
    """

    def __init__(
        self,
        settings: Settings,
        make_factory: MakeFactory = BACKENDS["local"],
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.failed = threading.Event()
        self.watch = Watch()
        metrics = Metrics()
        observers = Observers(
            on_step=metrics.observe_step,
            on_completion=lambda plan, _backend: metrics.observe_completion(plan.completion),
            on_failed=self.failed.set,
        )
        limit = settings.max_new_tokens_limit
        create_backend = watched(make_factory(settings, faults), faults, self.watch)
        compressors = load_catalog(settings.compressor)
        self.service = ModelService(
            create_backend, observers, limit, settings.step_timeout, compressors
        )
        describe = partial(
            service_info, settings=settings, version="0.0.0", compressors=compressors
        )
        app = create_app(self.service, metrics, policy_of(settings), "0.0.0", describe)
        self._server = _PromptServer(http_config(app, settings.max_header_bytes))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        keys = [key.get_secret_value() for key in settings.api_key]
        self.headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, headers=self.headers)
        self.thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self.thread.start()

    def wait_ready(self) -> LiveServer:
        with Client(self.url, sleep=lambda _pause_s: time.sleep(_POLL_S)) as client:
            client.wait_ready(TIMEOUT_S)
        return self

    def shrink_send_buffers(self) -> None:
        """Have connections made from here on keep little that is not read, in the kernel."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def close(self) -> None:
        self.http.close()
        self.service.drain()
        self._server.should_exit = True
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        self._socket.close()

    def settle(self) -> None:
        """Let the service end what follows its answers so far, such as their lines in the log."""
        # Each answer takes its event loop a turn further. The lines of probes are at a level that
        # tests do not read.
        for _ in range(8):
            assert self.http.get("/health").status_code == 200

    def metric(self, name: str, **labels: str) -> float:
        """Value of one sample of `/metrics`; 0 where there is none."""
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        start = f"{name}{{{inner}}} " if labels else f"{name} "
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line[len(start) :]) for line in lines if line.startswith(start)), 0.0)

    def forget_submitted(self) -> None:
        """Take back what `watch.submitted` counts of earlier tests, whose requests have ended."""
        while self.watch.submitted.acquire(blocking=False):
            pass

    def wait_metric(self, expected: float, name: str, **labels: str) -> None:
        """Wait until a sample has a value: a step is counted after the answers it completes."""
        deadline = time.monotonic() + TIMEOUT_S
        while (value := self.metric(name, **labels)) != expected:
            assert time.monotonic() < deadline, f"{name} is {value}, not {expected}"
            time.sleep(_POLL_S)


class RouteLines(logging.Handler):
    """Waits for the log lines of requests: an answer is sent before its line is written."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Semaphore(0)

    def __enter__(self) -> Self:
        # The root calls its handlers in their order, so the test's own have the line already.
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Count the line of a request."""
        if hasattr(record, "route"):
            self._written.release()

    def wait(self, count: int) -> None:
        """Wait until that many requests have their lines."""
        assert all(self._written.acquire(timeout=TIMEOUT_S) for _ in range(count))
