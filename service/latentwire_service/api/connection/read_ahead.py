"""Bytes that arrive while a request is being answered: pipelined requests, or anything else.

Threat: a client sends more after its request. uvicorn then stops reading, and without reading the
service does not notice a disconnect: the request keeps its slot.
Limit: `MAX_READ_AHEAD_BYTES`.
Mechanism: reading continues into a buffer, which is parsed after the answer. When the buffer is
full, the connection is aborted.
"""

from __future__ import annotations

# Ordinary clients do not pipeline.
MAX_READ_AHEAD_BYTES = 64 * 1024


class ReadAhead:
    """Keeps the bytes that a client sends before it is answered."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def keep(self, data: bytes) -> bool:
        """Keep bytes for later; return False if they would exceed the limit."""
        if len(self._kept) + len(data) > MAX_READ_AHEAD_BYTES:
            return False
        self._kept += data
        return True

    def take(self) -> bytes:
        """Return the kept bytes, and empty the buffer."""
        kept, self._kept = bytes(self._kept), bytearray()
        return kept
