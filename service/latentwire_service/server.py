"""The server process: it listens, serves one model, drains on a signal and returns a status."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextvars import Context
from functools import partial
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from latentwire_service.api.access_policy import Policy, all_keys
from latentwire_service.api.app import create_app
from latentwire_service.api.connection import Connection
from latentwire_service.compression.catalog import CompressorCatalog
from latentwire_service.engine.backend import BackendInfo
from latentwire_service.engine.errors import ModelError
from latentwire_service.engine.hf.cpu.cpu_tuning import settle_heap
from latentwire_service.engine_factory import backend_factory
from latentwire_service.key_watch import KeyFileWatch
from latentwire_service.model_service import ModelService, Observers, Plan
from latentwire_service.service_info import service_info
from latentwire_service.settings import Settings
from latentwire_service.telemetry.metrics import Metrics
from latentwire_service.telemetry.tracing import Tracing, open_tracing

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_BAD_MODEL = 0, 1, 2
_SEND_TIMEOUT_S = 5
_KEEP_ALIVE_S = 75
# After a failure, callers and load balancers learn its state before the address is gone.
_FAILED_S = 2.0


class _DrainingServer(uvicorn.Server):
    """Finishes running requests before it exits, and refuses new ones meanwhile.

    uvicorn alone would close its sockets first, and `/ready` could not state the reason.
    """

    def __init__(
        self, config: uvicorn.Config, service: ModelService, drain_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._service = service
        self._drain_timeout_s = drain_timeout_s
        self._is_draining = False

    def exit_after(self, pause_s: float) -> None:
        """End, but keep answering for some seconds. May be called on any thread."""
        timer = threading.Timer(pause_s, lambda: setattr(self, "should_exit", True))
        timer.daemon = True
        timer.start()

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Drain on the first signal; end at once on the second."""
        # Not in the context that the signal interrupts, whose request the log lines would name.
        Context().run(self._on_signal, sig)

    def _on_signal(self, sig: int) -> None:
        name = signal.Signals(sig).name
        if self._is_draining and name == "SIGHUP":
            # A terminal that closes may send it twice, by its shell and by the kernel.
            return
        if self._is_draining:
            logger.warning("stopped at once by %s", name)
            _end_process(128 + sig)
        self._is_draining = True
        logger.info("draining after %s", name)
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        if not self._service.drain(self._drain_timeout_s):
            logger.warning("not drained within %g s", self._drain_timeout_s)
        self.should_exit = True


def serve(settings: Settings, policy: Policy, compressors: CompressorCatalog) -> int:
    """Serve until a signal or a failure.

    Args:
        settings: of the service.
        policy: what requests must satisfy.
        compressors: those that requests may name.

    Returns:
        the exit status of the process.
    """
    try:
        listening = _listening_socket(settings)
    except OSError as error:
        place = f"port {settings.port} of --host" if settings.listen_fd is None else "--listen-fd"
        is_taken = settings.listen_fd is None and error.errno == errno.EADDRINUSE
        hint = "; choose another --port, or 0 for a free one" if is_taken else ""
        logger.error("cannot listen on %s: %s%s", place, error.strerror or error, hint)
        return EXIT_FAILED
    with listening:
        return _serve(settings, policy, compressors, listening)


def _listening_socket(settings: Settings) -> socket.socket:
    """Return the inherited socket, or one that listens on the address.

    Raises:
        OSError: the socket or the address cannot be used.
    """
    if settings.listen_fd is None:
        return _listen(settings.host, settings.port)
    listening = socket.socket(fileno=settings.listen_fd)
    try:
        if listening.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        # Processes started by a model's code must not inherit the address.
        listening.set_inheritable(False)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _listen(host: str, port: int) -> socket.socket:
    """Listen on an address. This happens before the model loads, so that a conflict shows at once.

    Raises:
        OSError: the address is in use, or is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is named. With the algorithm, the
    # last bytes of an answer wait up to 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def http_config(app: FastAPI, max_header_bytes: int) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        app: answers the requests.
        max_header_bytes: most bytes of a request head.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        # Stated, because uvicorn would read the variable WEB_CONCURRENCY.
        workers=1,
        access_log=False,
        server_header=False,
        http=Connection,
        ws="none",
        # A client must not set its own address with a header.
        proxy_headers=False,
        # Longer than clients keep idle connections (httpx 5 s, nginx 60 s): if the service closed
        # one first, it could meet a request that is on its way.
        timeout_keep_alive=_KEEP_ALIVE_S,
        h11_max_incomplete_event_size=max_header_bytes,
        # Bounds how long answers may still be sent after the drain: a reader may have stalled.
        timeout_graceful_shutdown=_SEND_TIMEOUT_S,
    )


def _serve(
    settings: Settings, policy: Policy, compressors: CompressorCatalog, listening: socket.socket
) -> int:
    package_version = version("latentwire")
    metrics = Metrics(package_version)
    tracing = open_tracing(os.environ, package_version)

    def stop() -> None:
        # A model that never loaded has no callers to tell.
        server.exit_after(0.0 if service.occupancy is None else _FAILED_S)

    observers = _observers(metrics, tracing, stop)
    service = ModelService(
        backend_factory(settings),
        observers,
        settings.max_new_tokens_limit,
        settings.step_timeout,
        compressors,
    )
    describe = partial(
        service_info, settings=settings, version=package_version, compressors=compressors
    )
    app = create_app(service, metrics, policy, package_version, describe, tracing)
    config = http_config(app, settings.max_header_bytes)
    server = _DrainingServer(config, service, settings.drain_timeout)
    _drain_on_hangup(server)
    keys = _watch_keys(settings, policy)
    logger.info("listening on %s", _url_of(listening))
    server.run([listening])
    _ignore_hangup()
    if keys is not None:
        keys.stop()
    if tracing is not None:
        tracing.close()
    status = _exit_status(server, service)
    logger.info("stopped with status %d", status)
    if service.is_working:
        # Native code on a daemon thread would crash while the interpreter shuts down.
        _end_process(status)
    return status


def _drain_on_hangup(server: _DrainingServer) -> None:
    """Drain when the terminal closes, as after SIGTERM, which uvicorn handles."""
    # Windows has no SIGHUP; under nohup it is ignored, and stays so.
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        signal.signal(hangup, server.handle_exit)


def _ignore_hangup() -> None:
    """Let no second hang-up of a terminal end the process that is about to end by itself.

    Python gives every signal that is not ignored its default back before its very end.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None:
        signal.signal(hangup, signal.SIG_IGN)


def _watch_keys(settings: Settings, policy: Policy) -> KeyFileWatch | None:
    if settings.api_key_file is None:
        return None
    watch = KeyFileWatch(settings.api_key_file, lambda: policy.api_keys.replace(all_keys(settings)))
    watch.start()
    return watch


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _observers(
    metrics: Metrics, tracing: Tracing | None, on_failed: Callable[[], None]
) -> Observers:
    def on_completion(plan: Plan, backend: BackendInfo) -> None:
        metrics.observe_completion(plan.completion)
        if tracing is not None:
            tracing.note_completion(plan.completion, backend.model_id)

    return Observers(metrics.observe_step, on_completion, settle_heap, on_failed)


def _exit_status(server: uvicorn.Server, service: ModelService) -> int:
    if service.failure is not None:
        return EXIT_BAD_MODEL if isinstance(service.failure, ModelError) else EXIT_FAILED
    return EXIT_OK if server.started else EXIT_FAILED


def _end_process(status: int) -> NoReturn:
    """End the process now, without waiting for its threads."""
    # A process of vLLM's that has just started would wait for this one without end.
    for child in multiprocessing.active_children():
        child.kill()
    logging.shutdown()
    os._exit(status)
