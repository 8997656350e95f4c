"""Server-sent events from bytes, as far as the service uses them. Pure: knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from latentwire.errors import ProtocolError

# A row of 64 Ki values is 350 KiB of base64: an event past this is no event of ours.
MAX_EVENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        name: of the event; "message" where none was given.
        data: its data lines, joined.
    """

    name: str
    data: bytes


class EventDecoder:
    """Cuts a stream of bytes into events.

    Lines end at line feeds only: text within JSON may hold other characters that Python, or a
    library, takes for the end of a line.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = "message"
        self._data: list[bytes] = []
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that the chunk completes.

        Raises:
            ProtocolError: an event is larger than any may be.
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
        # Every other field, and a comment (no name), is passed over.
        return None

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._check(self._num_bytes)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > MAX_EVENT_BYTES:
            raise ProtocolError(f"an event is larger than {MAX_EVENT_BYTES} bytes")
