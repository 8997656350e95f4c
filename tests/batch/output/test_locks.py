"""File systems without locks, and other answers of `flock`."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from latentwire_batch.errors import UsageError
from latentwire_batch.output.locks import acquire_lock, is_locked
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica


def fail_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_fd: int, _operation: int) -> None:
        raise OSError(number, "made up")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP", "EINVAL"])
def test_a_file_system_without_locks_is_named_with_a_remedy(
    name: str,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_with(getattr(errno, name), monkeypatch)
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: its file system has no file locks (flock)" in ended.stderr
    assert "use a directory on a local disk" in ended.stderr
    assert not (output / "data.parquet").exists()


def test_another_error_of_the_lock_is_an_error_of_the_output(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(errno.EIO, monkeypatch)
    ended = collect(replicas=[stub])
    assert ended.status == 1
    assert "the output cannot be locked: Input/output error" in ended.stderr


def test_looking_at_a_lock_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    fail_with(errno.ENOSYS, monkeypatch)
    for look in (acquire_lock, is_locked):
        with pytest.raises(UsageError, match="no file locks"):
            look(path)


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_that_does_not_sync_directories_can_hold_an_output(
    name: str,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(getattr(errno, name), "made up")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert collect(replicas=[stub]).status == 0
    assert (output / "data.parquet").exists()
