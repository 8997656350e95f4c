"""What a run of an earlier version left behind a URL, which did not say where its rows are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import fsspec
import pytest

from latentwire_batch.locations import Folder
from latentwire_batch.shards.merge_command import main as merge
from support.batch.collecting import Collect, Ended, WatchedStream
from support.batch.stub_replica import StubReplica

URL = "memory://left-over/out"
ROWS, CLAIM = ".partial/parts/first/1-a.rows", ".partial/settings.json"


@pytest.fixture
def shards() -> Iterator[list[Folder]]:
    yield [Folder(f"{URL}/shard-0000{index}-of-00002") for index in (0, 1)]
    fsspec.filesystem("memory").rm("/left-over", recursive=True)


@pytest.fixture
def remote(collect: Collect, stub: StubReplica, tmp_path: Path) -> Callable[..., Ended]:
    def run(index: int, *flags: str) -> Ended:
        places = ("--output-dir", URL, "--work-dir", str(tmp_path / "work"))
        return collect(*places, "--shard", f"{index}/2", *flags, replicas=[stub])

    return run


def merged(tmp_path: Path) -> Ended:
    with redirect_stderr(WatchedStream()) as stderr:
        status = merge([URL, "-o", str(tmp_path / "merged")])
    return Ended(status, stderr.getvalue())


def leave_unfinished(folder: Folder) -> None:
    settings = json.loads(folder.read("manifest.json") or b"")["settings"]
    folder.write(ROWS, b"")
    folder.write(CLAIM, json.dumps(settings).encode())


def test_without_failed_rows_it_is_removed_by_the_next_run(
    remote: Callable[..., Ended], shards: list[Folder], tmp_path: Path
) -> None:
    for index, folder in enumerate(shards):
        assert remote(index).status == 0
        leave_unfinished(folder)
    assert "shards 0/2 and 1/2 are unfinished: rerun their collection\n" in merged(tmp_path).stderr
    for index, folder in enumerate(shards):
        ended = remote(index)
        assert (ended.status, "nothing to do" in ended.stderr) == (0, True)
        assert not any(name.startswith(".partial") for name in folder.sizes())
    assert merged(tmp_path).status == 0


def test_with_failed_rows_it_may_be_a_retry_which_a_merge_tells_how_to_finish(
    remote: Callable[..., Ended], shards: list[Folder], stub: StubReplica, tmp_path: Path
) -> None:
    stub.behaviour.task_faults = {"Clean window 3 — ☀": [422]}
    for index in (0, 1):
        assert remote(index).status == (3 if index else 0)
    leave_unfinished(shards[1])
    assert "retry them with --retry-failed" in remote(1).stderr
    assert {ROWS, CLAIM} <= shards[1].sizes().keys()
    text = "unfinished, because failed rows are retried: rerun its collection with --retry-failed"
    assert merged(tmp_path).stderr.endswith(f"shard 1/2 is {text}\n")
    assert remote(1, "--retry-failed").status == 0
    assert not any(name.startswith(".partial") for name in shards[1].sizes())
    assert merged(tmp_path).status == 0
