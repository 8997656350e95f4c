"""Coordination of the ranks of one run, through files in `.partial`.

A rank is alive while it holds its lock, which the system releases when the process ends for
whatever reason. Each file names its launch, so files of an earlier launch are ignored.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from latentwire_batch.dispatch.seeds import Seeds
from latentwire_batch.errors import (
    OutputBusyError,
    RankLostError,
    RunInterrupted,
    storage_error,
)
from latentwire_batch.output.durable import read_json, write_json
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.locks import acquire_lock, is_locked
from latentwire_batch.ranks.rank import Rank
from latentwire_batch.run_settings import RunSettings, read_settings

_POLL_S = 0.2
# Between the first and the last rank to be ready, all of which read the same input first.
_START_PATIENCE_S = 600.0


class Rendezvous:
    """The ranks of one run, seen by one of them.

    Args:
        layout: of the output they share.
        rank: this process.
    """

    def __init__(self, layout: OutputLayout, rank: Rank) -> None:
        self._layout = layout
        self._rank = rank

    @contextmanager
    def announced(self, seeds: Seeds) -> Iterator[None]:
        """Let the other ranks work while this lasts; rank 0 calls it when it owns the output."""
        if self._rank.count == 1:
            yield
            return
        for note in self._layout.partial.glob("rank-*.json"):
            note.unlink(missing_ok=True)
        write_json(self._layout.launch, {"launch": self._rank.launch, **asdict(seeds)})
        try:
            yield
        finally:
            self._layout.launch.unlink(missing_ok=True)

    async def announced_seeds(self) -> Seeds:
        """Wait until rank 0 announces the run; return the seeds of the dataset.

        Raises:
            RankLostError: when it does not within 10 minutes.
        """
        try:
            async with asyncio.timeout(_START_PATIENCE_S):
                while True:
                    note = self._of_this_launch(read_json(self._layout.launch))
                    if note is not None:
                        return Seeds(note["dataset_seed"], note["row_seed_bits"], note["date"])
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise RankLostError("rank 0 did not start") from error

    @contextmanager
    def membership(self) -> Iterator[None]:
        """Take part in the run. A rank that leaves without `note_done` counts as lost.

        Raises:
            OutputBusyError: when another process has the same rank.
            StorageError: when its files cannot be written.
        """
        try:
            fd = acquire_lock(self._layout.rank_lock(self._rank.index))
        except OSError as error:
            raise storage_error("cannot be written", error) from error
        try:
            self._note("running")
            yield
        finally:
            os.close(fd)

    def note_done(self) -> None:
        """Tell the other ranks that this one's rows are settled."""
        self._note("done")

    async def stored_settings(self) -> RunSettings:
        """Wait until rank 0 has stored the settings of the run; return them."""
        while True:
            settings = read_settings(self._layout.settings)
            if settings is not None:
                return settings
            await asyncio.sleep(_POLL_S)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Report a lost rank instead of an interrupt.

        A launcher interrupts all processes when one has died, and the dead one is the reason.

        Raises:
            RankLostError: when the run is interrupted after another rank has ended too early.
        """
        try:
            yield
        except RunInterrupted:
            self.check()
            raise

    def check(self) -> None:
        """Raise RankLostError when another rank ended before its rows were settled."""
        if self._rank.count == 1:
            return
        if self._rank.index > 0:
            launch = self._of_this_launch(read_json(self._layout.launch))
            if launch is None or not is_locked(self._layout.lock):
                raise _lost(0)
            return
        for index in range(1, self._rank.count):
            is_running = self._state(index) == "running"
            # It may have finished between the two reads: look at its lock first, then at its note.
            if is_running and not is_locked(self._layout.rank_lock(index)):
                is_running = self._state(index) == "running"
                if is_running:
                    raise _lost(index)

    async def watch(self) -> None:
        """Check the other ranks repeatedly, until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(_POLL_S)

    async def others_done(self) -> None:
        """Wait until all other ranks are done.

        Raises:
            RankLostError: when one ended before that, or did not start.
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


def refuse_other_launches(layout: OutputLayout) -> None:
    """Check that no rank of an earlier launch still writes.

    Raises:
        OutputBusyError: when one does.
    """
    for path in layout.partial.glob("rank-*.lock"):
        if is_locked(path):
            raise OutputBusyError("--output-dir: another collection is writing to it")


def _lost(index: int) -> RankLostError:
    return RankLostError(
        f"rank {index} ended before its rows were done; finished rows are kept, rerun the same "
        "command to resume"
    )
