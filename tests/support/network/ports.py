"""Ports for servers that bind them by themselves, some time later."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

# Below the range from which Linux gives ports to connections and to servers that bind port 0, so
# that no other test takes one before its server binds it. Ray's workers have those below 20,000.
_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """Return a port of 127.0.0.1 that no other process has or gets by chance."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        with suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            return port
