"""Readers that read nothing.

Threat: a client requests megabytes and does not read them. Its answer stays in memory, and its
connection open, for as long as the client likes.
Limit: `MAX_STALL_S` without one byte taken. A slow reader is not limited.
Mechanism: while bytes wait to be sent, a timer compares how many of them the client's side has
acknowledged since it was last set; if none, it resets the connection.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress

MAX_STALL_S = 60.0


class StallWatch:
    """Watches the reader of one connection while bytes wait to be sent.

    Args:
        transport: the connection's transport.
        loop: the event loop of the transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._num_written = 0
        self._num_taken = 0

    def written(self, num_bytes: int) -> None:
        """Count bytes that were handed to the transport."""
        self._num_written += num_bytes

    def watch(self) -> None:
        """Start the timer, if bytes wait to be sent and it is not running."""
        if self._timer is None and not self._is_stopped and self.has_unsent:
            self._num_taken = self._count_taken()
            self._timer = self._loop.call_later(MAX_STALL_S, self._check)

    def stop(self) -> None:
        """Watch no longer: the connection is lost."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def has_unsent(self) -> bool:
        """Whether the transport holds bytes that the kernel has not accepted."""
        return self._transport.get_write_buffer_size() > 0

    def _check(self) -> None:
        self._timer = None
        if not self.has_unsent:
            return
        if self._count_taken() > self._num_taken:
            self.watch()
        else:
            self._reset()

    def _count_taken(self) -> int:
        """Count the bytes that the client's side has acknowledged.

        The kernel accepts more from here only once a good part of its own buffer, megabytes, is
        free. Counting accepted bytes would mistake a slow reader for a stalled one.
        """
        own: socket.socket = self._transport.get_extra_info("socket")
        num_queued = 0
        with suppress(OSError):
            answer = fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, bytes(4))
            num_queued = int.from_bytes(answer, sys.byteorder)
        return self._num_written - self._transport.get_write_buffer_size() - num_queued

    def _reset(self) -> None:
        # Without a reset, the kernel keeps its own buffer and tries to send it for minutes.
        reset = struct.pack("ii", 1, 0)
        own: socket.socket = self._transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        self._transport.abort()
