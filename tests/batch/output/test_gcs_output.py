"""Everything that reads and writes, over Google Cloud Storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest

import latentwire
from latentwire_batch.compression.command import main as compress
from latentwire_batch.inspection.command import main as inspect
from latentwire_batch.locations import Folder
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica
from support.stores.gcs_server import BUCKET, running_gcs


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    with running_gcs(monkeypatch):
        yield Folder(f"gs://{BUCKET}/a folder/out")


# The server takes one request at a time.
@pytest.mark.slow
def test_a_dataset_in_google_cloud_storage_is_collected_read_and_replaced(
    folder: Folder, collect: Collect, stub: StubReplica, tasks: Path, tmp_path: Path
) -> None:
    Folder(f"gs://{BUCKET}/in").put("tasks.jsonl", tasks)
    places = ("--dataset", f"gs://{BUCKET}/in/tasks.jsonl", "--output-dir", folder.url)
    flags = (*places, "--work-dir", str(tmp_path / "work"))
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 0, ended.stderr
    assert "Could not determine" not in ended.stderr
    assert "nothing to do" in collect(*flags, replicas=[stub]).stderr
    for name in folder.sizes():
        folder.fetch(name, tmp_path / "copy" / name)
    assert_complete(tmp_path / "copy", tasks_of(tasks))
    assert latentwire.load(folder.url)[39].task_id == "t39"
    with redirect_stderr(StringIO()) as stderr:
        assert inspect([folder.url]) == 0
        out = ["--output-dir", str(tmp_path / "compressed")]
        assert compress([folder.url, "--compressor", "mean-pool:2", *out]) == 0, stderr.getvalue()
    assert collect(*flags, "--overwrite", "--limit", "3", replicas=[stub]).status == 0
    assert len(latentwire.load(folder.url)) == 3
