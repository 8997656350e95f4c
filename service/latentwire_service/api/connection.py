"""One connection: uvicorn's HTTP/1.1 over h11, held to limits that neither of the two has.

What a caller sends after it was answered, how large a complete head is, bytes after a request, and
readers that stand still: all of these are the caller's choice, and cost the service something.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import socket
import struct
import sys
import termios
from contextlib import suppress
from typing import Any

import h11
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# How long a reader may take nothing before its connection is cut.
MAX_STALL_S = 60.0
# How long a caller that was answered before the end of its body may go on sending it. Cut at once,
# it would see a reset in place of the answer.
_LINGER_S = 5.0
# Of requests that are sent before the one before them is answered; nobody's client does so.
_MAX_PIPELINED_BYTES = 64 * 1024
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Connection(H11Protocol):
    """What uvicorn makes for each connection that it accepts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ask = self.app
        self.app = self._answer
        self._pipelined = bytearray()
        self._is_lingering = False
        self._is_over = False
        self._linger: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._num_written = 0
        self._num_taken = 0

    # asyncio says that any transport may come; for TCP it is one of both ways, as uvicorn has it.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; everything that closes the transport goes through `close`."""
        super().connection_made(transport)
        self._transport = transport
        # It has all that uvicorn asks of a transport, but is none by its class.
        self.transport = _ClosingBy(transport, self)  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._is_over = True
        for timer in (self._linger, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Close, which is what asyncio does now."""
        self._watch_reader()

    def data_received(self, data: bytes) -> None:
        """Read on, or keep, or drop what comes."""
        if self._is_lingering:
            return
        if not self._is_answering():
            super().data_received(data)
        elif len(self._pipelined) + len(data) <= _MAX_PIPELINED_BYTES:
            # Not left in the socket: only who reads it sees that the caller has gone.
            self._pipelined += data
        else:
            self.transport.abort()

    def handle_events(self) -> None:
        """Go on with what is read so far."""
        # h11 itself asks this of heads that are not complete.
        limit = self.config.h11_max_incomplete_event_size
        if self.conn.their_state is h11.IDLE and limit is not None:
            read = self.conn.trailing_data[0]
            end = _END_OF_HEAD.search(read)
            if (end.start() if end else len(read)) > limit:
                self.send_400_response(f"The head of a request must not exceed {limit} bytes.")
                return
        super().handle_events()
        if self._is_answering():
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, unless something else is being answered; end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.close()

    def on_response_complete(self) -> None:
        """Take the next request, which may be there already."""
        super().on_response_complete()
        self._watch_reader()
        if self._pipelined and not self.transport.is_closing():
            data, self._pipelined = bytes(self._pipelined), bytearray()
            self.data_received(data)

    def close(self) -> None:
        """Close, once the rest is sent, and the caller was let end what it may still be sending."""
        cycle = self.cycle
        is_reading = cycle is not None and cycle.more_body
        if not is_reading or self.transport.is_closing():
            self._transport.close()
            self._watch_reader()
            return
        self._is_lingering = True
        if not cycle.response_complete:
            # Nobody waits for the rest of it.
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()
        self._linger = self.loop.call_later(_LINGER_S, self._end_linger)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        except OSError:
            # Gone already.
            self._transport.abort()

    def written(self, num_bytes: int) -> None:
        """Count what is handed to the transport."""
        self._num_written += num_bytes

    def pause_writing(self) -> None:
        """Wait for the reader, but not for ever."""
        super().pause_writing()
        self._watch_reader()

    @property
    def is_closing(self) -> bool:
        """Whether there will be no other request."""
        return self._is_lingering or self._is_over

    def _should_upgrade(self) -> bool:
        # To nothing; uvicorn would warn of each request that asks for it.
        return False

    def _is_answering(self) -> bool:
        """Whether a request is read whole and not yet answered."""
        cycle = self.cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    def _watch_reader(self) -> None:
        if self._stall is None and not self._is_over and self._transport.get_write_buffer_size():
            self._num_taken = self._count_taken()
            self._stall = self.loop.call_later(MAX_STALL_S, self._look_at_reader)

    def _count_taken(self) -> int:
        """Count the bytes that the reader's side has acknowledged.

        The kernel takes more from here only once a good part of its own buffer, megabytes, is free:
        that alone would make a slow reader look like one that stands still.
        """
        own: socket.socket = self._transport.get_extra_info("socket")
        num_queued = 0
        with suppress(OSError):
            answer = fcntl.ioctl(own.fileno(), termios.TIOCOUTQ, bytes(4))
            num_queued = int.from_bytes(answer, sys.byteorder)
        return self._num_written - self._transport.get_write_buffer_size() - num_queued

    def _end_linger(self) -> None:
        if self._transport.get_write_buffer_size():
            # The answer is still being read; whether it is, is watched.
            self._watch_reader()
            self._linger = self.loop.call_later(_LINGER_S, self._end_linger)
        else:
            self._transport.abort()

    def _look_at_reader(self) -> None:
        self._stall = None
        if not self._transport.get_write_buffer_size():
            return
        if self._count_taken() > self._num_taken:
            self._watch_reader()
        else:
            # With a reset: else the kernel keeps what it has for the reader, and tries for minutes.
            reset = struct.pack("ii", 1, 0)
            own: socket.socket = self._transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self._transport.abort()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the app answer; an answer that comes before the end of the body is the last one."""
        cycle = self.cycle

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._ask(scope, receive, noted)


class _ClosingBy:
    """A transport whose connection closes it, and knows what is written."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self.close = connection.close
        self._connection = connection

    def is_closing(self) -> bool:
        return self._connection.is_closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self._connection.written(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
