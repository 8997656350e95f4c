"""TCP keepalive: finds out that a NAT or a firewall has dropped a connection in silence.

An answer may take minutes in which nothing is sent. Without probes, a lost connection would be
noticed only by the timeout of the request.
"""

from __future__ import annotations

import socket

_IDLE_S = 60
_INTERVAL_S = 15
_PROBES = 4
# By the names of the constants, which not every platform has; macOS has another name for the first.
_OPTIONS = {
    "TCP_KEEPIDLE": _IDLE_S,
    "TCP_KEEPALIVE": _IDLE_S,
    "TCP_KEEPINTVL": _INTERVAL_S,
    "TCP_KEEPCNT": _PROBES,
}


def socket_options() -> list[tuple[int, int, int]]:
    """Return the options of a socket, as arguments of `setsockopt`."""
    found = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _OPTIONS.items():
        number = getattr(socket, name, None)
        if number is not None:
            found.append((socket.IPPROTO_TCP, number, value))
    return found
