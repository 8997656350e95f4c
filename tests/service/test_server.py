"""The listening socket, and the options of the connections that it accepts."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from latentwire_service.server import _listen, http_config


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_does_not_wait_for_an_acknowledgement(host: str) -> None:
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


def test_a_header_cannot_change_the_caller() -> None:
    """Callers take turns, so a client with a new address per request would get every turn."""
    app = FastAPI()

    @app.get("/client")
    def client(request: Request) -> str:
        assert request.client is not None
        return request.client.host

    server = uvicorn.Server(http_config(app, 16384))
    with _listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.run, [listening])
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/client"
        forwarded = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
        try:
            assert httpx.get(url, headers=forwarded).json() == "127.0.0.1"
        finally:
            server.should_exit = True
        running.result(30)
