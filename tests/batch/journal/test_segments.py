"""Segments in a store, next to the ordinary log of the same rows."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentwire_batch.errors import LocationError, StorageError
from latentwire_batch.journal.record_log import Record, RecordLog
from latentwire_batch.journal.row_records import failed_record, finished_record, suspect_record
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.segments import reading
from latentwire_batch.journal.segments.patience import patiently
from latentwire_batch.journal.segments.reading import read_rows
from latentwire_batch.journal.segments.segment import SegmentBuilder
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.locations import Folder
from latentwire_batch.tasks.results import FailedRow, FinishedRow, RowState, Suspicion
from latentwire_batch.tasks.rows import Row

NUM_ROWS, WIDTH = 3000, 3
FAILED = FailedRow(5, "t5", "prompt-too-long", "why")
SUSPECT = (7, Suspicion(2, 3, 1))


def finished(index: int) -> FinishedRow:
    steps = index % 4
    latent = np.full((steps, WIDTH), index, dtype=np.float32)
    row = Row(index, f"t{index}", f"task {index} ä")
    return FinishedRow(row, f"plan {index}", latent, 4, steps + 1, "stop", tuple(range(steps)), 9)


def is_finished(index: int) -> bool:
    return index not in (FAILED.index, SUSPECT[0]) and index % 10 != 3


ROWS = [finished(index) for index in range(NUM_ROWS) if is_finished(index)]


def put(folder: Folder, name: str, records: list[Record]) -> None:
    builder = SegmentBuilder()
    for record in records:
        builder.add(record)
    folder.write(name, builder.to_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Hold the rows in several segments, mixed up; one index is larger than the first read."""
    folder = Folder(str(tmp_path / "store"))
    records = [finished_record(row) for row in ROWS]
    random.Random(3).shuffle(records)
    put(folder, "1-a.rows", [suspect_record(*SUSPECT), *records[:2600]])
    put(folder, "2-b.rows", [failed_record(FAILED), *records[2600:2640]])
    # A row that failed, and then finished.
    retried = FailedRow(ROWS[0].row.index, "t0", "timeout", "")
    put(folder, "0-c.rows", [failed_record(retried), *records[2640:]])
    return folder


@pytest.fixture
def log(tmp_path: Path) -> RecordLog:
    return RecordLog(tmp_path / "rows.log")


def opened(folder: Folder, log: RecordLog) -> RowStore:
    store = RowStore(log, NUM_ROWS, [Segments(folder).open()])
    store.recover()
    return store


def assert_rows(store: RowStore, rows: list[FinishedRow]) -> None:
    """Read rows by number, and by their places from a value that another machine could have."""
    index = copy.deepcopy(store.finished_index())
    for row, logged in zip(rows, read_rows(index), strict=True):
        stored = store.read(row.row.index)
        assert stored.text.task_id == row.row.task_id
        assert stored.text.plan == row.plan
        assert stored == logged.stored
        by_number, by_place = np.empty((2, *row.hidden_state.shape), np.float32)
        store.read_matrices_into(row.row.index, [by_number])
        logged.read_into([by_place])
        assert np.array_equal(by_number, row.hidden_state)
        assert np.array_equal(by_place, row.hidden_state)


def test_rows_are_read_back_in_order_by_few_requests(
    folder: Folder, log: RecordLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[int] = []
    real = Folder.read_part

    def read_part(self: Folder, name: str, start: int, stop: int) -> bytes:
        requests.append(stop - start)
        return real(self, name, start, stop)

    monkeypatch.setattr(Folder, "read_part", read_part)
    monkeypatch.setattr(reading, "_WINDOW_ROWS", 1000)
    store = opened(folder, log)
    store.will_read(RowState.FINISHED)
    assert_rows(store, ROWS)
    # Two for the large index, one for each of the others; then 3 windows of 3 files, twice.
    assert len(requests) <= 4 + 2 * 3 * 3
    assert [failed.index for failed in store.failed_rows()] == [FAILED.index]
    assert list(store.failed_rows()) == [FAILED]
    assert store.suspicion(SUSPECT[0]) == SUSPECT[1]
    assert store.count(RowState.PENDING) == NUM_ROWS - len(ROWS) - 1
    part = store.finished_index().of_rows(100, 200)
    assert [row.index for row in read_rows(part)] == list(filter(is_finished, range(100, 200)))
    store.close()


def test_an_ordinary_log_is_read_by_the_same_places(log: RecordLog) -> None:
    store = RowStore(log, NUM_ROWS)
    store.recover()
    for row in reversed(ROWS[:50]):
        store.add_finished(row)
    assert_rows(store, ROWS[:50])
    store.close()


def cut(data: bytes) -> bytes:
    return data[:-1]


def damage_index(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def without_records(data: bytes) -> bytes:
    return data[100:]


@pytest.mark.parametrize("spoil", [cut, damage_index, without_records, lambda _: b"", bytes.upper])
def test_a_segment_that_is_not_whole_does_not_count(
    folder: Folder, log: RecordLog, spoil: Callable[[bytes], bytes]
) -> None:
    folder.write("2-b.rows", spoil(folder.read("2-b.rows") or b""))
    folder.write("2-b.txt", b"")
    store = opened(folder, log)
    assert store.is_pending(FAILED.index)
    assert store.count(RowState.FINISHED) == len(ROWS) - 40
    store.close()


def test_a_record_that_the_store_has_changed_is_refused(folder: Folder, log: RecordLog) -> None:
    data = bytearray(folder.read("1-a.rows") or b"")
    data[len(data) // 3] ^= 1
    folder.write("1-a.rows", bytes(data))
    store = opened(folder, log)
    with pytest.raises(StorageError, match="damaged: the store does not return what was put there"):
        list(read_rows(store.finished_index()))
    store.close()


def test_only_what_may_pass_is_tried_again() -> None:
    errors = [LocationError("slow down"), LocationError("slow down")]
    pauses: list[float] = []

    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(call, sleep=pauses.append) == "done"
    assert len(pauses) == 2
    errors += [LocationError("access is denied", is_users=True)]
    with pytest.raises(LocationError, match="denied"):
        patiently(call, sleep=pauses.append)
    errors += [LocationError("slow down")] * 100
    with pytest.raises(LocationError, match="slow down"):
        patiently(call, sleep=pauses.append)
    assert 30 < sum(pauses[2:]) < 80
