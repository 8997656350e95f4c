"""Large output files: whole content, every file system, failures that show."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire_batch.dataset import durable_file
from latentwire_batch.dataset.durable_file import DurableFile

BLOCK = 1 << 14


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_file, "_BLOCK_BYTES", BLOCK)


@pytest.fixture(params=["direct", "refused at opening", "refused at writing"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system as it is, and two that do not write directly."""
    open_file, write = os.open, os.pwrite

    def open_as(path: Any, flags: int, *args: Any) -> int:
        if flags & os.O_DIRECT and request.param == "refused at opening":
            raise OSError(errno.EINVAL, "no direct writes")
        return open_file(path, flags, *args)

    def write_to(fd: int, data: Any, offset: int) -> int:
        is_direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        if is_direct and request.param == "refused at writing":
            raise OSError(errno.EINVAL, "no direct writes")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "open", open_as)
    monkeypatch.setattr(os, "pwrite", write_to)


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("sizes", [[], [0], [1], [BLOCK], [3, BLOCK * 5, 0, 7], [BLOCK - 1] * 9])
def test_all_that_is_written_is_in_the_file(tmp_path: Path, sizes: list[int]) -> None:
    pieces = [np.random.default_rng(size).bytes(size) for size in sizes]
    file = DurableFile(tmp_path / "file")
    for piece in pieces:
        assert file.write(piece) == len(piece)
    assert file.tell() == sum(sizes)
    file.close()
    assert file.closed
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * BLOCK))
    file = DurableFile(path)
    file.write(b"new")
    file.close()
    assert path.read_bytes() == b"new"


def test_cut_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, data[:4096], offset))
    content = np.random.default_rng(0).bytes(3 * BLOCK + 5)
    file = DurableFile(tmp_path / "file")
    file.write(content)
    file.close()
    assert (tmp_path / "file").read_bytes() == content


def test_a_full_disk_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    file = DurableFile(tmp_path / "file")
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(4 * BLOCK))
    file = DurableFile(tmp_path / "other")
    file.write(b"x")
    with pytest.raises(OSError, match="No space left"):
        file.close()
