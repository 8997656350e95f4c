"""Ranks of one run meet through files in `.partial`: who takes part, who is done, who is gone.

A rank lives as long as it holds its lock, which the system releases however it ends. Everything
written here names its launch, so that what an earlier launch left behind is not taken for news.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from latentwire_batch.errors import OutputBusyError, RankLostError
from latentwire_batch.journal.record_log import storage_error
from latentwire_batch.output.layout import OutputLayout, read_json, write_json
from latentwire_batch.output.locks import acquire_lock, is_locked
from latentwire_batch.ranks.rank import Rank

_POLL_S = 0.2
# From the last rank that is ready to the first: both have read the same input by then.
_START_PATIENCE_S = 600.0


class Crew:
    """The ranks of one run, as one of them sees the others.

    Args:
        layout: of the output they share.
        rank: this process.
    """

    def __init__(self, layout: OutputLayout, rank: Rank) -> None:
        self._layout = layout
        self._rank = rank

    @contextmanager
    def announced(self, seed: int) -> Iterator[None]:
        """Let the others begin, until this ends; rank 0 calls it when the output is its own."""
        if self._rank.count == 1:
            yield
            return
        for note in self._layout.partial.glob("rank-*.json"):
            note.unlink(missing_ok=True)
        write_json(self._layout.launch, {"launch": self._rank.launch, "seed": seed})
        try:
            yield
        finally:
            self._layout.launch.unlink(missing_ok=True)

    async def announced_seed(self) -> int:
        """Wait until rank 0 has announced the run; give the dataset's seed.

        Raises:
            RankLostError: when it does not.
        """
        try:
            async with asyncio.timeout(_START_PATIENCE_S):
                while True:
                    note = self._of_this_launch(read_json(self._layout.launch))
                    if note is not None:
                        return int(note["seed"])
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise RankLostError("rank 0 did not start") from error

    @contextmanager
    def membership(self) -> Iterator[None]:
        """Take part; the rank that leaves by an error is seen as lost.

        Raises:
            OutputBusyError: when a process of this rank takes part already.
            StorageError: when its files cannot be written.
        """
        index = self._rank.index
        try:
            fd = acquire_lock(self._layout.rank_lock(index))
        except OSError as error:
            raise storage_error("cannot be written", error) from error
        try:
            self._note("running")
            yield
            self._note("done")
        finally:
            os.close(fd)

    async def stored_settings(self) -> dict[str, Any]:
        """Wait until rank 0 has stored what the run is asked for."""
        while True:
            settings = read_json(self._layout.settings)
            if settings is not None:
                return settings
            await asyncio.sleep(_POLL_S)

    def check(self) -> None:
        """Raise RankLostError when another rank has ended before its rows were done."""
        if self._rank.count == 1:
            return
        if self._rank.index > 0:
            launch = self._of_this_launch(read_json(self._layout.launch))
            if launch is None or not is_locked(self._layout.lock):
                raise _lost(0)
            return
        for index in range(1, self._rank.count):
            is_running = self._state(index) == "running"
            # Between two looks it may have been done and gone: its lock first, then its word.
            if is_running and not is_locked(self._layout.rank_lock(index)):
                is_running = self._state(index) == "running"
                if is_running:
                    raise _lost(index)

    async def watch(self) -> None:
        """Check again and again, until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(_POLL_S)

    async def others_done(self) -> None:
        """Wait until all other ranks are done.

        Raises:
            RankLostError: when one ended before that, or never began.
        """
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        states = {index: self._state(index) for index in range(1, self._rank.count)}
        while any(state != "done" for state in states.values()):
            self.check()
            absent = [index for index, state in states.items() if state is None]
            if absent and loop.time() - start_s > _START_PATIENCE_S:
                raise RankLostError(f"rank {absent[0]} did not start")
            await asyncio.sleep(_POLL_S)
            states = {index: self._state(index) for index in states}

    def _state(self, index: int) -> str | None:
        note = self._of_this_launch(read_json(self._layout.rank_note(index)))
        return None if note is None else str(note["state"])

    def _note(self, state: str) -> None:
        note = {"launch": self._rank.launch, "state": state}
        write_json(self._layout.rank_note(self._rank.index), note)

    def _of_this_launch(self, note: dict[str, Any] | None) -> dict[str, Any] | None:
        return note if note is not None and note["launch"] == self._rank.launch else None


def refuse_strangers(layout: OutputLayout) -> None:
    """Make sure that no rank of an earlier launch is still writing.

    Raises:
        OutputBusyError: when one is.
    """
    for path in layout.partial.glob("rank-*.lock"):
        if is_locked(path):
            raise OutputBusyError("--output-dir: another collection is writing there")


def _lost(index: int) -> RankLostError:
    return RankLostError(
        f"rank {index} ended before its rows were done; what is finished is kept, and the same "
        "command goes on from there"
    )
