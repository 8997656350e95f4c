"""An answer of any form that HTTP/1.1 allows, read with h11, as httpx does. Sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import h11
import httpx

# That of httpx.
_MAX_HEAD_BYTES = 100 * 1024
_PIECE_BYTES = 1 << 16
# What httpx removes once the content is decoded.
_CODING = b"content-encoding"


@dataclass(frozen=True)
class WholeAnswer:
    """An answer as it was sent.

    Attributes:
        status: of HTTP.
        headers: names and values, in their order.
        content: as sent, without the framing of chunks.
        keeps_alive: whether the connection can be used for another request.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes
    keeps_alive: bool


class AnswerReader:
    """Reads one answer from pieces of any size.

    Args:
        max_bytes: largest content.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        # It reads an answer only after a request, of which nothing but the method matters.
        self._parser.send(h11.Request(method="POST", target="/", headers=[("Host", "replica")]))
        self._parser.send(h11.EndOfMessage())
        self._head: h11.Response | h11.InformationalResponse | None = None
        self._content: list[bytes] = []
        self._num_bytes = 0

    def feed(self, piece: bytes) -> WholeAnswer | None:
        """Take the next bytes; return the answer once it is complete.

        Args:
            piece: of the connection; empty at its end.

        Raises:
            httpx.RemoteProtocolError: when the answer breaks HTTP, or ends too early.
            httpx.DecodingError: when the content is too large.
        """
        try:
            if not piece and self._parser.their_state == h11.SEND_RESPONSE:
                raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
            self._parser.receive_data(piece)
            return self._read()
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    def _read(self) -> WholeAnswer | None:
        while True:
            event = self._parser.next_event()
            match event:
                case h11.Response():
                    self._head = event
                case h11.InformationalResponse(status_code=101):
                    # Nobody sent a request to switch.
                    self._head = event
                    return self._answer()
                case h11.Data():
                    self._num_bytes += len(event.data)
                    if self._num_bytes > self._max_bytes:
                        raise too_large(self._max_bytes)
                    self._content.append(bytes(event.data))
                case h11.EndOfMessage() | h11.PAUSED:
                    return self._answer()
                case h11.NEED_DATA:
                    return None

    def _answer(self) -> WholeAnswer:
        parser = self._parser
        assert self._head is not None
        is_done = parser.our_state is h11.DONE and parser.their_state is h11.DONE
        return WholeAnswer(
            self._head.status_code,
            [(name, value) for name, value in self._head.headers.raw_items()],
            b"".join(self._content),
            # Bytes that follow belong to no request.
            is_done and not parser.trailing_data[0],
        )


def too_large(max_bytes: int) -> httpx.DecodingError:
    """Return the error for an answer that no plan needs."""
    return httpx.DecodingError(f"the answer is larger than {max_bytes} bytes")


def http_response(answer: WholeAnswer, request: httpx.Request, max_bytes: int) -> httpx.Response:
    """Return an answer as httpx gives it: with its content decoded.

    Args:
        answer: as sent.
        request: that it answers.
        max_bytes: largest content after decoding.

    Raises:
        httpx.DecodingError: when the content cannot be decoded, or is too large.
    """
    headers, content = answer.headers, answer.content
    if any(name.lower() == _CODING for name, _ in headers):
        coded = httpx.Response(
            answer.status, headers=headers, stream=_Pieces(content), request=request
        )
        parts, num_bytes = [], 0
        for part in coded.iter_bytes():
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise too_large(max_bytes)
        content = b"".join(parts)
        headers = [(name, value) for name, value in headers if name.lower() != _CODING]
    return httpx.Response(answer.status, headers=headers, content=content, request=request)


class _Pieces(httpx.SyncByteStream):
    """Content in pieces, so that no decoder makes much of it at once."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), _PIECE_BYTES):
            yield self._content[start : start + _PIECE_BYTES]
