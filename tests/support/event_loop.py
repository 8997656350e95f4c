"""Blocking calls of the project in a running event loop: each raises and fails its test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import blockbuster.blockbuster as detector
import pytest

PACKAGES = ["latentwire", "latentwire_batch", "latentwire_service"]
# The detector knows reads, writes, locks, sockets and sleeps. Opening and syncing block as well.
ALSO_BLOCKING = ["io.open", "os.open", "os.fsync", "os.fdatasync", "socket.getaddrinfo"]
# (end of a file's path, functions in it) below which a call may block, each for its reason.
ALLOWED: list[tuple[str, set[str]]] = [
    # A log line is written when it is made: a queue would lose the last lines before a crash.
    ("logging/__init__.py", {"emit"}),
    # FastAPI looks up an endpoint's source once, at the endpoint's first request.
    ("fastapi/routing.py", {"_extract_endpoint_context"}),
    # asyncio itself starts child processes like this.
    ("asyncio/unix_events.py", {"_start"}),
    # The session is over: it waits for the one write that is under way, then closes the store.
    ("dispatch/row_sink.py", {"abandon"}),
    # The input is read row by row through a buffer, only when a replica has a free slot.
    ("tasks/inputs.py", {"rows"}),
    # A small file, written before the first row is sent.
    ("latentwire_batch/collect.py", {"_agree"}),
]


@contextmanager
def blocking_calls_raise() -> Iterator[list[str]]:
    """Have the project's blocking calls in event loops raise; yield the list of their names.

    The list also names calls whose error was swallowed on its way up.
    """
    names: list[str] = []

    class RecordedBlockingError(detector.BlockingError):
        def __init__(self, name: str) -> None:
            names.append(name)
            super().__init__(name)

    calls = detector.BlockBuster(PACKAGES)
    for name in ALSO_BLOCKING:
        calls.functions[name] = detector.BlockBusterFunction(None, name, scanned_modules=PACKAGES)
    for call in calls.functions.values():
        for file, functions in ALLOWED:
            call.can_block_in(file, functions)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detector, "BlockingError", RecordedBlockingError)
        calls.activate()
        try:
            yield names
        finally:
            calls.deactivate()
