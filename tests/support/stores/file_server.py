"""A web server on loopback for files, with the habits and faults of such servers."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import urlsplit

from support.network.serving import ThreadServer


@dataclass
class ServedFile:
    """A file, and how it is served.

    Attributes:
        data: its content.
        serves_parts: whether requests for a part get one.
        states_size: whether answers say how long they are.
        num_sent: bytes of a whole answer after which the connection breaks; None: all are sent.
        part_sent: like `num_sent`, of answers with a part.
        is_moved: whether the answer is elsewhere, at an address that is new each time.
        status: of all answers in place of the file.
        query: that requests must have, exactly.
        silence: until it is set, answers stop in the middle.
        requests: that were answered with the file, by method.
    """

    data: bytes
    serves_parts: bool = True
    states_size: bool = True
    num_sent: int | None = None
    part_sent: int | None = None
    is_moved: bool = False
    status: int | None = None
    query: str = ""
    silence: threading.Event | None = None
    requests: Counter[str] = field(default_factory=Counter)


class FileServer(ThreadServer):
    """Serves on loopback while it is entered.

    Attributes:
        files: by path.
        unknown: paths and queries of requests for anything else.
    """

    def __init__(self) -> None:
        self.files: dict[str, ServedFile] = {}
        self.unknown: list[str] = []
        super().__init__(_Server(("127.0.0.1", 0), _handler(self)))


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that has read enough of a file leaves."""


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    signatures = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            file = server.files.get(url.path.removesuffix("/moved"))
            is_moved = url.path.endswith("/moved")
            if file is None or (not is_moved and url.query != file.query):
                server.unknown.append(self.path)
                self._empty(404)
            elif file.status is not None:
                self._empty(file.status)
            elif file.is_moved and not is_moved:
                self._empty(302, Location=f"{url.path}/moved?signature={next(signatures)}")
            else:
                file.requests[self.command] += 1
                self._send(file)

        do_HEAD = do_GET

        def _empty(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def _send(self, file: ServedFile) -> None:
            wanted = self.headers.get("Range") if file.serves_parts else None
            first, _, last = (wanted or "").removeprefix("bytes=").partition("-")
            start, size = int(first or 0), len(file.data)
            part = file.data[start : int(last) + 1] if wanted else file.data
            self.send_response(206 if wanted else 200)
            if wanted:
                end = start + len(part) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            if file.states_size:
                self.send_header("Content-Length", str(len(part)))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command == "HEAD":
                return
            sent = file.part_sent if wanted else file.num_sent
            is_cut = sent is not None and sent < len(part)
            body = part[:sent] if is_cut else part
            if not file.states_size:
                body = b"%x\r\n%s\r\n" % (len(part), body) + (b"" if is_cut else b"0\r\n\r\n")
            if file.silence is not None:
                self.wfile.write(body[:1])
                file.silence.wait()
                body = body[1:]
            self.wfile.write(body)
            if is_cut:
                self.close_connection = True

    return Handler
