"""A work directory whose disk takes no more: the flag, and the room that the run needs."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latentwire_batch.assembly import Assembly
from latentwire_batch.errors import DiskError, StorageError, storage_error
from latentwire_batch.journal.record_log import Record, RecordLog, RecordRef
from latentwire_batch.locations import Folder, LocationError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.room import named_disk
from latentwire_batch.shards.merge_command import main as merge
from support.batch.collecting import Collect, Ended, WatchedStream
from support.batch.stub_replica import StubReplica

URL = "memory://room/out"
FULL = "; make room there, and rerun the same command"
NEED = r"; this run needs about (.+ [KM]B) there in all, and (.+ (?:bytes|[KM]B)) are written"
UNITS = {"bytes": 1, "KB": 10**3, "MB": 10**6}
ENDINGS = {
    errno.ENOSPC: NEED + FULL,
    errno.EDQUOT: NEED + FULL,
    errno.EFBIG: NEED + FULL,
    errno.EROFS: NEED,
    errno.EIO: "",
}


@pytest.fixture(autouse=True)
def memory() -> Iterator[MemoryFileSystem]:
    filesystem: MemoryFileSystem = fsspec.filesystem("memory")
    yield filesystem
    if filesystem.exists("/room"):
        filesystem.rm("/room", recursive=True)


def failing(number: int) -> Callable[..., Any]:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Let the log take a number of rows, and then fail."""
    append_all = RecordLog.append_all

    def install(num_rows: int, number: int) -> None:
        left = [num_rows]

        def append_or_fail(log: RecordLog, records: Sequence[Record]) -> list[RecordRef]:
            # Records of the time, which come every second, have no body.
            num_given = sum(bool(record.body) for record in records)
            if num_given > left[0]:
                error = OSError(number, os.strerror(number))
                raise storage_error("cannot be written", error) from error
            left[0] -= num_given
            return append_all(log, records)

        monkeypatch.setattr(RecordLog, "append_all", append_or_fail)

    return install


def run_merge(*args: str) -> Ended:
    stderr = WatchedStream()
    with redirect_stderr(stderr):
        status = merge(list(args))
    return Ended(status, stderr.getvalue())


def sizes_in(ended: Ended, flag: str, number: int) -> list[float]:
    """What the run needs and what is written, in bytes; empty where the line does not say."""
    reason = re.escape(f"{flag}: the output cannot be written: {os.strerror(number)}")
    found = re.search(f"^latentwire [a-z]+: {reason}{ENDINGS[number]}$", ended.stderr, re.M)
    assert ended.status == 1
    assert found, ended.stderr
    sizes = [text.split() for text in found.groups()]
    return [float(size) * UNITS[unit] for size, unit in sizes]


@pytest.mark.parametrize("number", ENDINGS)
@pytest.mark.parametrize(("layout", "num_times"), [("classic", 3), ("hub", 2)])
def test_a_disk_that_fills_up_in_a_run_behind_a_url_is_named_with_the_room_it_needs(
    layout: str,
    num_times: int,
    number: int,
    full_after: Callable[[int, int], None],
    collect: Collect,
    stub: StubReplica,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    stub.behaviour.hidden_size = 256
    places = ["--output-dir", URL, "--work-dir", str(tmp_path), "--layout", layout]
    full_after(8, number)
    sizes = sizes_in(collect(*places, replicas=[stub]), "--work-dir", number)
    monkeypatch.undo()
    if not sizes:
        return
    needed, written = sizes
    log = next(tmp_path.rglob("rows.log")).stat().st_size
    assert 1 < written / log < 1.1
    # The rows, and as many again for each form in which the files hold them.
    assert 0.9 < needed / (log / 8 * 40 * num_times) < 1.1
    # Whatever was written is kept.
    stub.received.clear()
    assert collect(*places, replicas=[stub]).status == 0
    assert len(stub.received) == 32
    assert sum(Folder(URL).sizes().values()) < needed


def test_a_disk_that_fills_up_in_the_assembly_is_named(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for places, flag in (
        (["--output-dir", URL, "--work-dir", str(tmp_path)], "--work-dir"),
        (["--output-dir", str(tmp_path / "here")], "--output-dir"),
    ):
        monkeypatch.setattr(Assembly, "run", failing(errno.ENOSPC))
        sizes = sizes_in(collect(*places, replicas=[stub]), flag, errno.ENOSPC)
        assert 2.5 < sizes[0] / sizes[1] < 3.1
        monkeypatch.undo()
        stub.received.clear()
        assert collect(*places, replicas=[stub]).status == 0
        assert not stub.received


def test_a_disk_that_fills_up_in_a_merge_is_named_and_not_a_shard(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for index in (0, 1):
        flags = ("--output-dir", URL, "--work-dir", str(tmp_path), "--shard", f"{index}/2")
        assert collect(*flags, replicas=[stub]).status == 0
    found = Folder(URL).sizes().items()
    rows = {name: size for name, size in found if name.endswith((".arrow", ".parquet"))}
    needed = sum(rows.values()) + sum(
        max(size for name, size in rows.items() if name.startswith(f"shard-0000{index}"))
        for index in (0, 1)
    )
    merged, work = "memory://room/merged", str(tmp_path / "work")
    places = {merged: "--work-dir", str(tmp_path / "here"): "--output-dir"}
    for target, (output, flag) in itertools.product((Assembly, MemoryFileSystem), places.items()):
        name = "run" if target is Assembly else "get_file"
        monkeypatch.setattr(target, name, failing(errno.EDQUOT))
        sizes = sizes_in(run_merge(URL, "-o", output, "--work-dir", work), flag, errno.EDQUOT)
        assert abs(sizes[0] - needed) < 0.01 * needed
        monkeypatch.undo()
    for output in places:
        assert run_merge(URL, "-o", output, "--work-dir", work).status == 0


def test_only_errors_of_the_directory_itself_name_its_flag(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path, is_remote=True)
    with pytest.raises(StorageError, match=r"^a shard is damaged$"), named_disk(layout):
        raise StorageError("a shard is damaged")
    unreachable = storage_error("cannot be read", LocationError("the store cannot be reached"))
    with pytest.raises(StorageError, match="^the output cannot be read"), named_disk(layout):
        raise unreachable
    # Ray sends errors between processes.
    error = pickle.loads(pickle.dumps(DiskError("text", errno.ENOSPC)))
    assert (str(error), error.number) == ("text", errno.ENOSPC)
    # What is written may be gone, too, when the room is estimated.
    full = storage_error("cannot be written", OSError(errno.ENOSPC, "x"))
    with pytest.raises(StorageError) as ended, named_disk(layout, failing(errno.EIO)):
        raise full
    text = f"--work-dir: the output cannot be written: {os.strerror(errno.ENOSPC)}"
    assert str(ended.value) == f"{text}{FULL}"
