from __future__ import annotations

import errno
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from latentwire_batch.errors import StorageError
from latentwire_batch.journal import direct_file, record_log
from latentwire_batch.journal.record_log import Record, RecordLog, RecordRef

BLOCK = 4096
LARGE = 300_000


def record(row: int, num_bytes: int) -> Record:
    """A record whose body is at an address that direct writes accept."""
    content = np.frombuffer(mmap.mmap(-1, num_bytes + BLOCK), np.uint8)[:num_bytes]
    content[:] = np.random.default_rng(row).integers(0, 256, num_bytes, np.uint8)
    return Record(1, row, {"row": row, "text": "ü" * row}, [content.data])


def records(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, row, place and size of each body, as the format describes them."""
    offset = 0
    while offset < len(content):
        fields = struct.unpack_from("<4sBxxxIqQII", content, offset)
        magic, kind, num_meta, row, num_body, checksum, header_checksum = fields
        start = offset + 36
        offset = start + num_meta + num_body
        assert magic == b"LWR1"
        assert header_checksum == zlib.crc32(content[start - 36 : start - 4])
        assert checksum == zlib.crc32(content[start:offset])
        yield kind, row, offset - num_body, num_body


@pytest.fixture(params=["direct", "page cache"])
def path(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.touch()
    if request.param == "page cache":
        # The layout of direct writes in a file system that has none.
        monkeypatch.setattr(direct_file, "_opened", os.open)
    elif direct_file._opened(path, os.O_RDONLY) is None:
        pytest.skip("this file system has no direct writes")
    return path


def check(path: Path, written: list[tuple[RecordRef, Record]]) -> None:
    """Compare what a log reads with what was written."""
    log = RecordLog(path)
    assert list(log.recover()) == [ref for ref, _ in written]
    for ref, expected in written:
        out = np.empty(expected.body_bytes, np.uint8)
        log.read_body_into(ref.offset, [out[:100], out[100:]])
        assert out.tobytes() == b"".join(expected.body)
        assert log.read_meta(ref.offset) == expected.meta
    log.close()


@pytest.mark.parametrize("num_together", [1, 3, 8])
def test_large_bodies_are_whole_blocks_between_records_of_any_size(
    path: Path, num_together: int
) -> None:
    sizes = [LARGE, 100, LARGE + 1, 74 * BLOCK, 74 * BLOCK - 10, 4000, 20, 2 * LARGE, 50]
    log, refs = RecordLog(path), []
    given = [record(row, size) for row, size in enumerate(sizes)]
    for start in range(0, len(given), num_together):
        refs += log.append_all(given[start : start + num_together])
    log.close()
    written = list(zip(refs, given, strict=True))
    check(path, written)
    found = [each for each in records(path.read_bytes()) if each[0]]
    assert [(row, size) for _, row, _, size in found] == list(enumerate(sizes))
    assert {place % BLOCK for _, _, place, size in found if size >= LARGE} == {0}
    # A tail that is torn, inside of padding too, costs its own record.
    for cut in (1, 60, LARGE):
        with path.open("r+b") as file:
            file.truncate(written[2][0].offset + cut)
        check(path, written[:2])


@pytest.mark.parametrize(("max_bytes", "num_writes"), [(3 * LARGE, 1), (3 * LARGE - 1, 3)])
def test_large_records_share_a_write_unless_they_are_very_large(
    path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int, num_writes: int
) -> None:
    monkeypatch.setattr(record_log, "_MAX_SHARED_BYTES", max_bytes)
    log, real, offsets = RecordLog(path), os.pwritev, []

    def note(fd: int, pieces: list[memoryview], offset: int) -> int:
        offsets.append(offset)
        return real(fd, pieces, offset)

    given = [record(row, LARGE) for row in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", note)
        refs = log.append_all(given)
    log.close()
    assert len(offsets) == num_writes
    check(path, list(zip(refs, given, strict=True)))


@pytest.mark.parametrize("num_written", [None, 0, 5000])
def test_a_direct_write_that_is_refused_or_cut_short_is_done_in_another_way(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int | None
) -> None:
    log = RecordLog(path)
    written = [(log.append(each), each) for each in [record(0, LARGE)]]
    real, direct_fds = os.pwritev, {log._direct._fd}

    def refuse(fd: int, pieces: list[memoryview], offset: int) -> int:
        if fd not in direct_fds:
            return real(fd, pieces, offset)
        if num_written is None:
            raise OSError(errno.EINVAL, "Invalid argument")
        return num_written

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", refuse)
        given = [record(1, LARGE), record(2, LARGE)]
        written += zip(log.append_all(given), given, strict=True)
    log.close()
    check(path, written)


def test_a_full_disk_leaves_the_log_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RecordLog(path)
    written = [(log.append(each), each) for each in [record(0, LARGE), record(1, 10)]]
    size, real = path.stat().st_size, os.pwritev

    def full(fd: int, pieces: list[memoryview], offset: int) -> int:
        if fd == log._direct._fd:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, pieces, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full)
        with pytest.raises(StorageError, match="No space left"):
            log.append_all([record(2, 10), record(3, LARGE), record(4, LARGE)])
    assert path.stat().st_size == size
    written += [(log.append(each), each) for each in [record(2, LARGE)]]
    log.close()
    check(path, written)
