"""A server that sends given bytes, whatever it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Script:
    """What a server does with each request.

    Attributes:
        pieces: sent one after the other.
        closes: whether the connection ends afterwards; else it waits for another request.
        pause_s: between the pieces.
    """

    pieces: Sequence[bytes]
    closes: bool = True
    pause_s: float = 0.0


@dataclass
class ScriptedServer:
    """Answers request i by script i, and all further ones by the last.

    Attributes:
        scripts: see above.
        requests: heads and bodies, in order of arrival.
        num_connections: that were made.
        left: set when the other end leaves a connection.
        on_request: called for each request.
        host: to listen on.
    """

    scripts: Sequence[Script]
    requests: list[bytes] = field(default_factory=list)
    num_connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)
    on_request: Callable[[], None] = lambda: None
    host: str = "127.0.0.1"
    _serving: set[asyncio.Task[Any]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.num_connections += 1
        # A task that ends as cancelled would be reported by asyncio's streams.
        with suppress(ConnectionError, asyncio.CancelledError):
            await self._answer_all(reader, writer)
        writer.close()
        with suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        self._serving.discard(task)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _request(reader)) is not None:
                self.requests.append(request)
                self.on_request()
                script = self.scripts[min(len(self.requests), len(self.scripts)) - 1]
                for number, piece in enumerate(script.pieces):
                    if number:
                        await asyncio.sleep(script.pause_s)
                    writer.write(piece)
                    await writer.drain()
                if script.closes:
                    return
        except ConnectionError:
            pass
        self.left.set()


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        return head + await reader.readexactly(sum(lengths))
    except asyncio.IncompleteReadError:
        return None
