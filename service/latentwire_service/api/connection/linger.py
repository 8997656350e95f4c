"""Clients that keep sending a body after they are answered.

Threat: a client is answered before the end of its body (413, 401, 404) and sends on. If the
connection closed at once, the client would see a reset instead of the answer; if it stayed open,
the client could send without end.
Limit: `LINGER_S`, or longer while the client still reads the answer.
Mechanism: the sending half closes, so that the answer is complete. Bytes from the client are read
and dropped. When the time is over and the answer is sent, the connection is aborted.
"""

from __future__ import annotations

import asyncio

from latentwire_service.api.connection.stall import StallWatch

LINGER_S = 5.0


class LingeringClose:
    """Closes one connection in two steps.

    Args:
        transport: the connection's transport.
        loop: the event loop of the transport.
        stall: watches the reader of the bytes not sent yet.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, stall: StallWatch
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._stall = stall
        self._timer: asyncio.TimerHandle | None = None
        self.is_begun = False

    def begin(self) -> None:
        """Close the sending half now, and the connection after `LINGER_S`."""
        self.is_begun = True
        self._timer = self._loop.call_later(LINGER_S, self._end)
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        except OSError:
            # The client is already gone.
            self._transport.abort()

    def stop(self) -> None:
        """Do nothing more: the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()

    def _end(self) -> None:
        if self._stall.has_unsent:
            # The client may still be reading the answer; the stall watch finds out.
            self._stall.watch()
            self._timer = self._loop.call_later(LINGER_S, self._end)
        else:
            self._transport.abort()
