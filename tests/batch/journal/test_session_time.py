"""The time of sessions on a cluster, also of those that were killed."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from latentwire_batch.errors import LocationError, StorageError
from latentwire_batch.journal import session_time
from latentwire_batch.journal.open_store import open_store
from latentwire_batch.journal.record_log import RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.journal.session_time import SessionTime
from latentwire_batch.locations import Folder
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import ALONE


class Clock:
    """A clock that shows the time it was set to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["in a log", "next to segments"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder | None:
    return Folder(str(tmp_path / "store")) if request.param == "next to segments" else None


def layout_of(tmp_path: Path, work: str) -> OutputLayout:
    layout = OutputLayout(tmp_path / work)
    layout.partial.mkdir(parents=True, exist_ok=True)
    return layout


def opened(layout: OutputLayout, folder: Folder | None) -> RowStore:
    segments = None if folder is None else Segments(folder)
    return open_store(layout, 1, ALONE, None, False, segments=segments)


def recorded_s(layout: OutputLayout, folder: Folder | None) -> float:
    """What a run finds if the process is killed here."""
    if folder is not None:
        segments = Segments(folder)
        segments.open()
        return segments.elapsed_s
    store = RowStore(RecordLog(layout.log, is_own=False), 1)
    store.recover()
    store.close()
    return store.elapsed_s


async def until(is_true: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(is_true):
        pass


def test_the_time_of_a_session_is_known_while_it_lasts_and_adds_up_over_machines(
    folder: Folder | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_time, "_INTERVAL_S", 0)
    # A directory is shared by all machines.
    layouts = [layout_of(tmp_path, work if folder else "a") for work in ("a", "b", "c")]

    async def session(layout: OutputLayout, before_s: float) -> None:
        clock, store = Clock(), await asyncio.to_thread(opened, layout, folder)
        assert store.elapsed_s == before_s
        time = SessionTime(folder, clock)
        clock.now_s += 4
        async with time.recorded(store):
            await until(lambda: recorded_s(layout, folder) == before_s + 4)
            clock.now_s += 3
            await until(lambda: recorded_s(layout, folder) == before_s + 7)
            clock.now_s += 0.5
        store.close()

    asyncio.run(session(layouts[0], 0))
    asyncio.run(session(layouts[1], 7.5))
    last = opened(layouts[2], folder)
    assert last.elapsed_s == 15
    last.close()


def test_a_store_that_refuses_the_time_ends_no_run_and_a_log_only_at_the_end(
    folder: Folder | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_time, "_INTERVAL_S", 0)
    layout, is_full = layout_of(tmp_path, "a"), True
    write, append = Folder.write, RecordLog.append
    refusals = []

    def refuse(real: Callable[..., object], error: Exception) -> Callable[..., object]:
        def call(*args: object) -> object:
            if not is_full:
                return real(*args)
            refusals.append(args)
            raise error

        return call

    async def session(is_mended: bool) -> None:
        nonlocal is_full
        clock, store = Clock(), await asyncio.to_thread(opened, layout, folder)
        async with SessionTime(folder, clock).recorded(store):
            clock.now_s += 2
            refusals.clear()
            await until(lambda: len(refusals) > 1)
            is_full = not is_mended
        store.close()

    disk = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Folder, "write", refuse(write, LocationError("away")))
    monkeypatch.setattr(RecordLog, "append", refuse(append, StorageError(str(disk))))
    asyncio.run(session(is_mended=True))
    assert recorded_s(layout, folder) == 2
    is_full = True
    if folder is not None:
        asyncio.run(session(is_mended=False))
    else:
        with pytest.raises(StorageError, match="No space left"):
            asyncio.run(session(is_mended=False))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"elapsed_s": null}', b"\xff"])
def test_a_damaged_time_counts_as_none(content: bytes, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "store"))
    folder.write("elapsed-1.json", content)
    folder.write("elapsed-2.json", b'{"elapsed_s": 2.5}')
    assert recorded_s(layout_of(tmp_path, "a"), folder) == 2.5
