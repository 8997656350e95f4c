"""The server process: listens, serves one model, drains on a signal, ends with a status."""

from __future__ import annotations

import logging
import os
import socket
import threading
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

import uvicorn
from transformers.utils import logging as transformers_logging

from latentwire_service.app import create_app
from latentwire_service.engine.errors import ModelError
from latentwire_service.metrics import Metrics
from latentwire_service.serving import Serving
from latentwire_service.settings import Settings

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_BAD_MODEL = 0, 1, 2


class _DrainingServer(uvicorn.Server):
    """Finishes what runs before it exits, and stays up meanwhile to refuse what comes.

    uvicorn alone would close its sockets first, so that `/ready` could no longer say why.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self._is_draining = False

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Drain on the first signal; end at once on the second."""
        if self._is_draining:
            _end_process(128 + sig)
        self._is_draining = True
        logger.info("draining")
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._serving.drain()
        self.should_exit = True


def serve(settings: Settings) -> int:
    """Serve until a signal or a failure.

    Returns:
        the exit status of the process.
    """
    _quieten_transformers()
    try:
        listening = _listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or error
        logger.error("cannot listen on %s:%d: %s", settings.host, settings.port, reason)
        return EXIT_FAILED
    with listening:
        return _serve(settings, listening)


def _quieten_transformers() -> None:
    """Send its records the way of ours, which keeps paths out, and show no progress bars."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded.

    Raises:
        OSError: it is taken, or is not this machine's.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _serve(settings: Settings, listening: socket.socket) -> int:
    metrics = Metrics()
    package_version = version("latentwire")

    def on_failed() -> None:
        server.should_exit = True

    serving = Serving(settings, metrics, package_version, on_failed)
    app = create_app(serving, metrics, settings.max_body_bytes, package_version)
    server = _DrainingServer(uvicorn.Config(app, log_config=None, access_log=False), serving)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d", host, listening.getsockname()[1])
    server.run([listening])
    status = _exit_status(server, serving)
    if serving.is_at_work:
        # Native code on a daemon thread does not survive the interpreter's end: it would abort.
        _end_process(status)
    return status


def _exit_status(server: uvicorn.Server, serving: Serving) -> int:
    if serving.failure is not None:
        return EXIT_BAD_MODEL if isinstance(serving.failure, ModelError) else EXIT_FAILED
    return EXIT_OK if server.started else EXIT_FAILED


def _end_process(status: int) -> NoReturn:
    """End now, whatever other threads are doing."""
    logging.shutdown()
    os._exit(status)
