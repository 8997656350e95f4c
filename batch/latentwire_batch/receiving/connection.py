"""One connection to a replica: sends a request, and receives its answer in place.

The body of a plain answer goes from the socket into a block of the pool, and nowhere else. Other
answers are read by `whole_answer`.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
from contextlib import suppress
from dataclasses import dataclass

import httpx

from latentwire.keepalive import socket_options
from latentwire.safetensors_wire import LENGTH
from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.plain_head import MAX_PLAIN_HEAD_BYTES, PlainHead, plain_head
from latentwire_batch.receiving.whole_answer import AnswerReader, WholeAnswer, too_large

_PIECE_BYTES = 1 << 16
# What ends a head for h11.
_EMPTY_LINE = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """A 200 in safetensors.

    Attributes:
        body: read-only; its memory is used again once nothing refers to it.
    """

    body: memoryview


Answer = PlainAnswer | WholeAnswer


class Connection(asyncio.BufferedProtocol):
    """A connection, which carries one request at a time.

    Args:
        pool: gives the memory for bodies.

    Attributes:
        idle_since_s: end of the last request, seconds of the loop's clock.
    """

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._poll = select.poll()
        self._is_reusable = True
        self.idle_since_s = self._loop.time()
        # Of the answer that is received now.
        self._waiter: asyncio.Future[Answer] | None = None
        self._max_bytes = 0
        self._timeout_s = 0.0
        self._active_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._start = memoryview(bytearray(MAX_PLAIN_HEAD_BYTES))
        self._num_received = 0
        self._head: PlainHead | None = None
        self._body: memoryview | None = None
        self._reader: AnswerReader | None = None
        self._piece: memoryview | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        connected = transport.get_extra_info("socket")
        for option in socket_options():
            connected.setsockopt(*option)
        self._fd = connected.fileno()
        self._poll.register(self._fd, select.POLLIN)

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection can carry another request, as far as this end knows."""
        if not self._is_reusable or self._transport is None or self._transport.is_closing():
            return False
        # An end of the connection that the loop has not seen yet.
        return not self._poll.poll(0)

    def abort(self) -> None:
        """Close the connection at once; the other end notices that its answer is not wanted."""
        self._is_reusable = False
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, request: bytes, timeout_s: float, max_bytes: int) -> Answer:
        """Send a request and return its answer. A connection that fails is closed.

        Args:
            request: head and body.
            timeout_s: longest silence, in seconds.
            max_bytes: largest answer.

        Raises:
            httpx.RequestError: when no complete answer arrives; it names no request.
        """
        assert self._transport is not None
        self._waiter = self._loop.create_future()
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._num_received = 0
        self._transport.write(request)
        self._active_s = self._loop.time()
        due_s = self._active_s + timeout_s
        # That of the request before it is kept: it is early, and then waits for the rest.
        if self._timer is None or self._timer.when() > due_s:
            self._set_timer(due_s)
        try:
            return await self._waiter
        except BaseException:
            self.abort()
            raise
        finally:
            self._waiter = self._head = self._body = self._reader = None
            self.idle_since_s = self._loop.time()
            if not self._is_reusable:
                self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes belong."""
        del sizehint
        if self._body is not None:
            return self._body[self._num_received :]
        if self._reader is not None:
            self._piece = self._piece or memoryview(bytearray(_PIECE_BYTES))
            return self._piece
        return self._start[self._num_received :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that arrived."""
        if self._waiter is None or self._waiter.done():
            # Bytes that belong to no request; the next answer would begin with them.
            self.abort()
            return
        self._active_s = self._loop.time()
        try:
            self._take(nbytes)
        except httpx.RequestError as error:
            self._fail(error)

    def eof_received(self) -> None:
        """End the answer; the transport closes itself."""
        self._is_reusable = False
        if self._waiter is None or self._waiter.done():
            return
        try:
            if self._head is not None:
                raise httpx.RemoteProtocolError(
                    "peer closed connection without sending complete message body (received "
                    f"{self._num_received} bytes, expected {self._head.body_bytes})"
                )
            if self._reader is None:
                self._read_generally(bytes(self._start[: self._num_received]))
            self._read_generally(b"")
        except httpx.RequestError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """End an answer that can no longer arrive."""
        self._is_reusable = False
        self._stop_timer()
        error = httpx.ReadError("" if exc is None else str(exc))
        error.__cause__ = exc
        self._fail(error)

    def _take(self, num_bytes: int) -> None:
        if self._head is not None:
            self._num_received += num_bytes
            self._finish_if_complete()
        elif self._reader is not None:
            assert self._piece is not None
            self._read_generally(bytes(self._piece[:num_bytes]))
        else:
            self._num_received += num_bytes
            received = bytes(self._start[: self._num_received])
            if _EMPTY_LINE.search(received) or len(received) == MAX_PLAIN_HEAD_BYTES:
                self._begin(received)

    def _begin(self, received: bytes) -> None:
        head = plain_head(received)
        if head is None:
            self._read_generally(received)
            return
        if head.body_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        try:
            body = self._pool.take(head.body_bytes, _place_of_values(received[head.num_bytes :]))
        except MemoryError:
            raise too_large(self._max_bytes) from None
        part = received[head.num_bytes : head.num_bytes + head.body_bytes]
        body[: len(part)] = part
        self._head, self._body, self._num_received = head, body, len(part)
        # Bytes that follow belong to no request.
        is_whole = len(received) <= head.num_bytes + head.body_bytes
        self._is_reusable = head.keeps_alive and is_whole
        self._read_now()
        self._finish_if_complete()

    def _read_now(self) -> None:
        """Read what has arrived of a body, without another round of the loop."""
        target = self.get_buffer(-1)
        if target.nbytes:
            # The loop finds errors and the end of the connection by itself.
            with suppress(OSError):
                self._num_received += os.readv(self._fd, [target])

    def _finish_if_complete(self) -> None:
        assert self._head is not None
        assert self._body is not None
        if self._num_received == self._head.body_bytes:
            self._finish(PlainAnswer(self._body.toreadonly()))
            # Bytes that follow must not get into it.
            self._head = self._body = None
            self._num_received = 0

    def _read_generally(self, piece: bytes) -> None:
        if self._reader is None:
            self._reader = AnswerReader(self._max_bytes)
        answer = self._reader.feed(piece)
        if answer is not None:
            self._is_reusable = self._is_reusable and answer.keeps_alive
            self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answer)

    def _fail(self, error: httpx.RequestError) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _set_timer(self, due_s: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_at(due_s, self._check_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_silence(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        due_s = self._active_s + self._timeout_s
        if self._loop.time() < due_s:
            self._set_timer(due_s)
        else:
            self._fail(httpx.ReadTimeout(""))


def _place_of_values(received: bytes) -> int:
    """Return where the values of a body begin, if so much of it has arrived.

    It is known early, so that they can be received at the address that the log needs.
    """
    if len(received) < LENGTH.size:
        return 0
    (num_bytes,) = LENGTH.unpack_from(received)
    return LENGTH.size + int(num_bytes)
