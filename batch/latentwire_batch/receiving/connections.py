"""Connections to one replica: idle ones are used again while they are fresh."""

from __future__ import annotations

import asyncio
import socket

import httpx

from latentwire_batch.receiving.buffers import BufferPool
from latentwire_batch.receiving.connection import Answer, Connection

# That of httpx, and of the service.
_IDLE_S = 5.0
# Between the starts of connections to several addresses of one name (RFC 8305).
_NEXT_ADDRESS_S = 0.25


class Connections:
    """All connections to one address. Belongs to one event loop.

    Args:
        host: name or address.
        port: of it.
        pool: gives the memory for bodies.
    """

    def __init__(self, host: str, port: int, pool: BufferPool) -> None:
        self._host = host
        self._port = port
        self._pool = pool
        self._idle: list[Connection] = []

    async def exchange(
        self, request: bytes, timeout_s: float, connect_timeout_s: float, max_bytes: int
    ) -> Answer:
        """Send a request on an idle connection or a new one; see `Connection.exchange`."""
        connection = self._idle_connection()
        if connection is None:
            connection = await self._connect(connect_timeout_s)
        answer = await connection.exchange(request, timeout_s, max_bytes)
        self._idle.append(connection)
        return answer

    def close(self) -> None:
        """Close the idle connections; the others close when their requests are cancelled."""
        while self._idle:
            self._idle.pop().abort()

    def _idle_connection(self) -> Connection | None:
        oldest_s = asyncio.get_running_loop().time() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since_s > oldest_s and connection.is_usable:
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_s: float) -> Connection:
        """Connect.

        Raises:
            httpx.ConnectError: when nothing answers there.
            httpx.ConnectTimeout: when it takes too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connected()
        except TimeoutError as error:
            raise httpx.ConnectTimeout("") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error

    async def _connected(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self._pool),
                self._host,
                self._port,
                happy_eyeballs_delay=_NEXT_ADDRESS_S,
            )
        except OSError as error:
            if error.errno is None:
                # asyncio has put the errors of several addresses into one text.
                await self._fail_at_first_address()
            raise
        return connection

    async def _fail_at_first_address(self) -> None:
        """Raise the error of one address, whose number tells the reason."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setblocking(False)
            await loop.sock_connect(attempt, address)
