"""A proxy on loopback that breaks the connections of some rows; the replica behind it lives on."""

from __future__ import annotations

import http.client
import select
import socket
import struct
import threading
from contextlib import suppress
from math import isinf
from typing import Literal, Self

Cut = Literal["before-head", "in-head", "in-body", "reset", "refused", "silent"]
_HEAD_END = b"\r\n\r\n"


class CuttingProxy:
    """Passes requests on, and cuts the answers to those that contain a text.

    Args:
        port: of the replica.
        marker: of the requests whose answers are cut.
        cut: where; `refused` also stops listening for a moment, `silent` never closes.
        num_cuts: how many answers are cut.

    Attributes:
        cuts_left: how many answers will be cut.
        num_cut: how many were.
        away_s: how long `refused` does not listen.
    """

    def __init__(self, port: int, marker: bytes, cut: Cut, num_cuts: int) -> None:
        self._upstream = port
        self._marker = marker
        self._cut = cut
        self.cuts_left = num_cuts
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._open: list[socket.socket] = []
        self.num_cut = 0
        self.away_s: float = 0.15
        self._is_leaving, self._has_left = threading.Event(), threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._listener = _listener(0)
        self._port = self._listener.getsockname()[1]
        # Bound the whole time, so that no other process gets the port while nobody listens.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", self._port))
        self.base_url = f"http://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._wake.send(b"!")
        self._thread.join()
        self._has_left.set()
        for connection in self._open:
            connection.close()
        self._reserved.close()
        self._wake.close()
        self._woken.close()

    def _accept(self) -> None:
        while not self._is_over.is_set():
            select.select([self._listener, self._woken], [], [])
            # Those that have connected are served: to close a listener breaks their connections.
            with suppress(BlockingIOError):
                while True:
                    self._start(self._listener.accept()[0])
            if self._is_leaving.is_set():
                self._leave()
        self._listener.close()

    def _leave(self) -> None:
        """Do not listen for a while."""
        self._woken.recv(1)
        self._listener.close()
        self._is_leaving.clear()
        self._has_left.set()
        if not self._is_over.wait(None if isinf(self.away_s) else self.away_s):
            self._listener = _listener(self._port)

    def _start(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._open.append(connection)
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            while request := _read_request(connection):
                is_cut = self._is_cut(request)
                answer = self._answer_of(request)
                if is_cut:
                    self._send_cut(connection, answer)
                    return
                connection.sendall(answer)
                if request.startswith(b"GET"):
                    return

    def _is_cut(self, request: bytes) -> bool:
        with self._lock:
            is_cut = self._marker in request and self.cuts_left > 0
            self.num_cut += is_cut
            self.cuts_left -= is_cut
            return is_cut

    def _send_cut(self, connection: socket.socket, answer: bytes) -> None:
        head_end = answer.index(_HEAD_END) + len(_HEAD_END)
        match self._cut:
            case "in-head":
                connection.sendall(answer[: head_end // 2])
            case "in-body":
                connection.sendall(answer[: (head_end + len(answer)) // 2])
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case "refused":
                self._has_left.clear()
                self._is_leaving.set()
                self._wake.send(b"!")
                self._has_left.wait()
            case "silent":
                self._is_over.wait()

    def _answer_of(self, request: bytes) -> bytes:
        head, _, body = request.partition(_HEAD_END)
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        headers = dict(line.split(": ", 1) for line in lines)
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream)
        upstream.request(method, path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(content)}"]
        lines.append(f"Content-Type: {answer.headers['content-type']}")
        # So that a probe shows whether the proxy listens.
        lines += ["Connection: close"] * (method == "GET")
        return "\r\n".join(lines).encode() + _HEAD_END + content


def _listener(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port), backlog=64, reuse_port=True)
    listener.setblocking(False)
    return listener


def _read_request(connection: socket.socket) -> bytes:
    received = b""
    while _HEAD_END not in received:
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        received += piece
    head = received.partition(_HEAD_END)[0]
    lengths = [
        int(line.partition(b":")[2])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    ]
    while len(received) < len(head) + len(_HEAD_END) + sum(lengths):
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        received += piece
    return received
