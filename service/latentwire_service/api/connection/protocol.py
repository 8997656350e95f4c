"""The protocol object of a connection: it calls the limits at the right moments.

It overrides methods of uvicorn's h11 protocol that uvicorn does not document, which is why
`pyproject.toml` bounds the versions of uvicorn and h11.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from latentwire_service.api.connection.head_limit import exceeds_head_limit
from latentwire_service.api.connection.linger import LingeringClose
from latentwire_service.api.connection.read_ahead import ReadAhead
from latentwire_service.api.connection.request_target import origin_form
from latentwire_service.api.connection.stall import StallWatch


class Connection(H11Protocol):
    """uvicorn makes one for each connection that it accepts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unwrapped_app = self.app
        self.app = self._answer
        self._read_ahead = ReadAhead()
        self._is_lost = False

    # asyncio types the argument as any transport; for TCP it is bidirectional, as uvicorn says.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin. Whatever closes the transport from here on calls `close`."""
        super().connection_made(transport)
        self._transport = transport
        self._stall = StallWatch(transport, self.loop)
        self._linger = LingeringClose(transport, self.loop, self._stall)
        # It has every method that uvicorn calls, but is no subclass of a transport.
        self.transport = _WatchedTransport(transport, self)  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._is_lost = True
        self._stall.stop()
        self._linger.stop()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Let asyncio close the transport, and watch the reader of the bytes not sent yet."""
        self._stall.watch()

    def data_received(self, data: bytes) -> None:
        """Parse bytes, keep them for after the current answer, or drop them."""
        if self._linger.is_begun:
            return
        if not self._is_answering():
            super().data_received(data)
        elif not self._read_ahead.keep(data):
            self.transport.abort()

    def handle_events(self) -> None:
        """Handle the events that h11 parses from the bytes received so far."""
        limit = self.config.h11_max_incomplete_event_size
        if limit is not None and exceeds_head_limit(self.conn, limit):
            self.send_400_response(f"The head of a request must not exceed {limit} bytes.")
            return
        super().handle_events()
        if self._is_answering():
            # uvicorn paused reading if more had arrived; see `read_ahead`.
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, unless an answer has begun; close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.close()

    def on_response_complete(self) -> None:
        """Parse the next request, which may have arrived already."""
        super().on_response_complete()
        self._stall.watch()
        if not self.transport.is_closing():
            data = self._read_ahead.take()
            if data:
                self.data_received(data)

    def close(self) -> None:
        """Close the connection once its answer is sent; see `linger` for unfinished bodies."""
        cycle = self.cycle
        is_reading = cycle is not None and cycle.more_body
        if not is_reading or self.transport.is_closing():
            self._transport.close()
            self._stall.watch()
            return
        if not cycle.response_complete:
            # The rest of the body is dropped: the request cannot be completed.
            cycle.disconnected = True
            cycle.message_event.set()
        self.flow.resume_reading()
        self._linger.begin()

    def written(self, num_bytes: int) -> None:
        """Count bytes that were handed to the transport."""
        self._stall.written(num_bytes)

    def pause_writing(self) -> None:
        """Wait for the reader, within the limit of `stall`."""
        super().pause_writing()
        self._stall.watch()

    @property
    def is_closing(self) -> bool:
        """Whether no further request will be read."""
        return self._linger.is_begun or self._is_lost

    def _should_upgrade(self) -> bool:
        # uvicorn would log a warning for each request with an `Upgrade` header.
        return False

    def _is_answering(self) -> bool:
        """Return whether a request was read completely and is not answered yet."""
        cycle = self.cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app. An answer before the end of the body announces the connection's end."""
        cycle = self.cycle

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and cycle.more_body:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._unwrapped_app(origin_form(scope), receive, noted)


class _WatchedTransport:
    """A transport that its connection closes, and whose written bytes are counted."""

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
