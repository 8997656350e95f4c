"""How long sessions on a cluster take, recorded while they last.

Where rows go into a store, a small file next to them has the time of each session, because the next
one may run on another machine. Elsewhere the time stands in the log of the run.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from latentwire_batch.errors import LocationError, StorageError
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.locations import Folder

# A killed session loses so much of its time.
_INTERVAL_S = 10.0
_PREFIX = "elapsed-"
_KEY = "elapsed_s"


def is_session_time(name: str) -> bool:
    """Whether a file in the folder of the rows has the time of a session."""
    return name.startswith(_PREFIX) and "/" not in name


def read_session_time(folder: Folder, name: str) -> float:
    """Return the seconds that a session took; 0 when the file does not say.

    Raises:
        LocationError: when the store cannot be read.
    """
    try:
        return float(json.loads(folder.read(name) or b"{}")[_KEY])
    except (ValueError, LookupError, TypeError):
        return 0.0


class SessionTime:
    """The time of one session, which begins now.

    Args:
        folder: takes the rows of the session; None: logs do.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Folder | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._name = f"{_PREFIX}{uuid.uuid4().hex}.json"
        self._started_s = self._recorded_until_s = clock()

    @asynccontextmanager
    async def recorded(self, store: RowStore) -> AsyncIterator[None]:
        """Record the time every few seconds while the context lasts, and at its end.

        Args:
            store: of the rows; nobody else appends to it.

        Raises:
            StorageError: at the end, when the log cannot be written.
        """
        ended = asyncio.Event()
        recording = asyncio.create_task(self._record_until(ended, store))
        try:
            yield
        finally:
            ended.set()
            await recording

    async def _record_until(self, ended: asyncio.Event, store: RowStore) -> None:
        is_last = False
        while not is_last:
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _INTERVAL_S)
            is_last = ended.is_set()
            try:
                await asyncio.to_thread(self._record, store)
            except StorageError:
                # The next record makes up for another one.
                if is_last:
                    raise

    def _record(self, store: RowStore) -> None:
        now_s = self._clock()
        if self._folder is None:
            store.add_elapsed(now_s - self._recorded_until_s)
            self._recorded_until_s = now_s
            return
        # The rows themselves show whether the store fails.
        with suppress(LocationError):
            elapsed_s = round(now_s - self._started_s, 3)
            self._folder.write(self._name, json.dumps({_KEY: elapsed_s}).encode())
