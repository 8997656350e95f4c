"""The listening socket, and what asyncio makes of the connections that it accepts."""

from __future__ import annotations

import asyncio
import socket

import pytest

from latentwire_service.server import _listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_is_not_held_back_for_an_acknowledgement(host: str) -> None:
    """With Nagle's algorithm, a body waited 40 ms for its head to be acknowledged."""
    try:
        listening = _listen(host, 0)
    except OSError:
        pytest.skip(f"{host} is no address of this machine")

    async def option_of_an_accepted_connection() -> int:
        options: asyncio.Queue[int] = asyncio.Queue()

        async def accepted(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            own: socket.socket = writer.get_extra_info("socket")
            options.put_nowait(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(accepted, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(host, listening.getsockname()[1])
            option = await options.get()
            writer.close()
        return option

    assert asyncio.run(option_of_an_accepted_connection()) != 0
