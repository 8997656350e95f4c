"""Server-sent events from bytes, as far as the service uses them. Pure: knows no HTTP.

Own code, because libraries split lines at every Unicode line separator, which JSON texts may
contain, and bound no event's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latentwire.errors import ProtocolError

# A latent row of 64 Ki values takes 350 KiB of base64; no event of the service is this large.
MAX_EVENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        name: of the event; "message" when none is given.
        data: its data lines, joined.
    """

    name: str
    data: bytes


class EventDecoder:
    """Splits a stream of bytes into events. Lines end at line feeds only."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = "message"
        self._data: list[bytes] = []
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that the chunk completes.

        Raises:
            ProtocolError: when an event exceeds `MAX_EVENT_BYTES`.
        """
        self._rest += chunk
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            self._count(len(line))
            event = self._take(bytes(line.removesuffix(b"\r")))
            if event is not None:
                yield event
        self._check(self._num_bytes + len(self._rest))

    def _take(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._name, b"\n".join(self._data)) if self._data else None
            self._name, self._data, self._num_bytes = "message", [], 0
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._name = value.decode("utf-8", "replace")
        elif name == b"data":
            self._data.append(value)
        # Other fields, and comments (no name), are ignored.
        return None

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._check(self._num_bytes)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event is larger than {MAX_EVENT_BYTES} bytes")
