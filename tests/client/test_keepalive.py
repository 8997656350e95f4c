"""TCP keepalive of the clients, which finds a connection that was dropped in silence."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from latentwire import AsyncClient, Client

# As the platform names them.
NUMBERS = {"TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
WANTED = {getattr(socket, name): value for name, value in NUMBERS.items() if hasattr(socket, name)}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def is_kept_alive(response: httpx.Response) -> bool:
    connected: Any = response.extensions["network_stream"].get_extra_info("socket")
    found = {number: connected.getsockopt(socket.IPPROTO_TCP, number) for number in WANTED}
    return found == WANTED and connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


def test_connections_have_keepalive(url: str) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client, client._http.stream("GET", "/") as response:
            assert is_kept_alive(response)

    with Client(url) as client, client._http.stream("GET", "/") as response:
        assert is_kept_alive(response)
    asyncio.run(main())
