"""Keys that change while the service runs: the key file is read again when it changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from latentwire_service.api.access_policy import PolicyError

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0

_Stamp = tuple[int, int, int] | None


class KeyFileWatch:
    """Looks at a key file every `INTERVAL_S` seconds.

    A file that cannot be used is logged, and the keys that were valid stay valid: an editor may be
    in the middle of writing it.

    Args:
        path: the file.
        reload: reads it; raises PolicyError when it cannot be used.
    """

    def __init__(self, path: Path, reload: Callable[[], None]) -> None:
        self._path = path
        self._reload = reload
        self._stamp = self._read_stamp()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._is_stopped = threading.Event()

    def start(self) -> None:
        """Start to watch, on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._is_stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Read the file if it has changed since the last call."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._reload()
        except PolicyError as error:
            logger.error("the API keys stay as they are: %s", error)
        else:
            logger.info("the API keys were read again")

    def _run(self) -> None:
        while not self._is_stopped.wait(INTERVAL_S):
            self.check()

    def _read_stamp(self) -> _Stamp:
        try:
            status = self._path.stat()
        except OSError:
            return None
        # A file that was replaced may have the size and the time of the old one.
        return status.st_mtime_ns, status.st_size, status.st_ino
