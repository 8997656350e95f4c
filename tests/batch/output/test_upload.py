from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from latentwire_batch.locations import Folder
from latentwire_batch.output.upload import Upload

URL = "memory://bucket/out"


@pytest.fixture
def folder() -> Iterator[Folder]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield Folder(URL)
    store.store.clear()


def test_a_file_that_changed_after_it_was_sent_is_sent_again(
    folder: Folder, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"right")
    said: list[str] = []
    upload = Upload(folder, tmp_path, tmp_path / "record", said.append)
    upload.send(["a", "b"])
    folder.write("a", b"wrong")
    upload.send(["a", "b"])
    assert folder.read("a") == b"right"
    assert said[-1] == f"uploading 1 files (5 bytes) to {URL}; 1 are there already"
    upload.send(["a", "b"])
    assert said[-1] == f"uploading 0 files (0 bytes) to {URL}; 2 are there already"


def test_a_torn_record_of_an_upload_only_sends_its_file_again(
    folder: Folder, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"right")
    upload = Upload(folder, tmp_path, record, lambda _line: None)
    upload.send(["a"])
    upload.send(["b"])
    record.write_bytes(record.read_bytes()[:-20])
    said: list[str] = []
    upload = Upload(folder, tmp_path, record, said.append)
    upload.send(["a", "b"])
    upload.send(["a", "b"])
    assert [line.partition(" files")[0] for line in said] == ["uploading 1", "uploading 0"]
