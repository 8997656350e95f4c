from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from latentwire_batch.errors import StorageError
from latentwire_batch.journal import record_log
from latentwire_batch.journal.record_log import HEADER_BYTES, Record, RecordLog, RecordRef


def record(row: int, floats: int = 6) -> Record:
    values = np.arange(floats, dtype=np.float32) + row
    return Record(
        kind=1, row=row, meta={"row": row, "text": "ü"}, body=[values.view(np.uint8).data]
    )


def written(path: Path, count: int) -> list[RecordRef]:
    log = RecordLog(path)
    refs = [log.append(record(row)) for row in range(count)]
    log.close()
    return refs


def test_records_come_back_as_written(tmp_path: Path) -> None:
    refs = written(tmp_path / "log", 3)
    log = RecordLog(tmp_path / "log")
    assert list(log.recover()) == refs
    out = np.empty((2, 3), dtype=np.float32)
    log.read_body_into(refs[2].offset, [out])
    np.testing.assert_array_equal(out, [[2, 3, 4], [5, 6, 7]])
    assert log.read_meta(refs[1].offset) == {"row": 1, "text": "ü"}


def test_records_of_more_pieces_than_one_write_takes_come_back(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log")
    pieces = [memoryview(bytes([number % 256])) for number in range(1000)]
    refs = log.append_all([Record(1, row, {}, pieces) for row in range(3)])
    assert list(RecordLog(tmp_path / "log").recover()) == refs
    out = np.empty(1000, dtype=np.uint8)
    log.read_body_into(refs[2].offset, [out])
    assert out.tobytes() == b"".join(pieces)


def test_checksums_are_those_of_zlib(tmp_path: Path) -> None:
    written(tmp_path / "log", 1)
    content = (tmp_path / "log").read_bytes()
    checksums = struct.unpack("<II", content[28:HEADER_BYTES])
    assert checksums == (zlib.crc32(content[HEADER_BYTES:]), zlib.crc32(content[:32]))


def test_an_empty_body_is_a_record_too(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "log")
    ref = log.append(Record(2, 5, {}))
    assert list(RecordLog(tmp_path / "log").recover()) == [ref]
    log.read_body_into(ref.offset, [np.empty((0, 4), dtype=np.float32)])


def test_a_tail_torn_at_any_byte_is_dropped(tmp_path: Path) -> None:
    refs = written(tmp_path / "whole", 3)
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "torn"
    for size in range(refs[2].offset, len(whole)):
        path.write_bytes(whole[:size])
        log = RecordLog(path)
        assert list(log.recover()) == refs[:2]
        assert path.stat().st_size == refs[2].offset
        again = log.append(record(2))
        log.close()
        assert again == refs[2]
        assert path.read_bytes() == whole


def test_zeros_after_a_power_loss_are_dropped(tmp_path: Path) -> None:
    refs = written(tmp_path / "log", 2)
    with (tmp_path / "log").open("ab") as file:
        file.write(bytes(4096))
    assert list(RecordLog(tmp_path / "log").recover()) == refs


def test_a_damaged_body_costs_its_own_record_only(tmp_path: Path) -> None:
    refs = written(tmp_path / "log", 3)
    flip(tmp_path / "log", refs[1].offset + HEADER_BYTES + 3)
    assert list(RecordLog(tmp_path / "log").recover()) == [refs[0], refs[2]]


def test_a_damaged_header_ends_the_log(tmp_path: Path) -> None:
    refs = written(tmp_path / "log", 3)
    flip(tmp_path / "log", refs[1].offset + 9)
    assert list(RecordLog(tmp_path / "log").recover()) == refs[:1]


def test_damage_after_recovery_is_found_when_read(tmp_path: Path) -> None:
    refs = written(tmp_path / "log", 1)
    log = RecordLog(tmp_path / "log")
    list(log.recover())
    flip(tmp_path / "log", (tmp_path / "log").stat().st_size - 1)
    with pytest.raises(StorageError, match="row 0 is damaged"):
        log.read_body_into(refs[0].offset, [np.empty(6, dtype=np.float32)])


def test_a_log_that_cannot_be_opened_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(record_log, "DirectFile", full)
    with pytest.raises(StorageError, match="cannot be opened"):
        RecordLog(tmp_path / "log")
    opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
    assert str(tmp_path / "log") not in opened


def test_a_write_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    log = RecordLog(path)
    first = log.append(record(0))
    real, calls = os.pwritev, []

    def full_disk(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 1:
            return real(fd, [buffers[0][:10]], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full_disk)
        with pytest.raises(StorageError, match="No space left on device"):
            log.append(record(1))
    second = log.append(record(1))
    assert list(RecordLog(path).recover()) == [first, second]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
