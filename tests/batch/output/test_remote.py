from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latentwire_batch.journal.record_log import RecordLog, parse_record
from latentwire_batch.journal.row_records import finished_record
from latentwire_batch.journal.segments.segment import SegmentBuilder
from latentwire_batch.locations import Folder, LocationError
from latentwire_batch.tasks.results import FinishedRow
from latentwire_batch.tasks.rows import Row
from support.batch.collecting import Collect, Ended, write_tasks
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

URL = "memory://bucket/out"
Remote = Callable[..., Ended]


@pytest.fixture
def folder() -> Iterator[Folder]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield Folder(URL)
    store.store.clear()


@pytest.fixture
def remote(collect: Collect, folder: Folder, tmp_path: Path) -> Remote:
    """Run `latentwire collect` into `folder`."""
    del folder

    def run(*flags: str, replicas: list[StubReplica] | None = None, work: str = "work") -> Ended:
        places = ("--output-dir", URL, "--work-dir", str(tmp_path / work))
        return collect(*places, *flags, replicas=replicas)

    return run


def downloaded(folder: Folder, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    for name in folder.sizes():
        folder.fetch(name, copy / name)
    return copy


def test_a_finished_dataset_is_in_the_folder_and_nothing_is_left_here(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, tmp_path: Path
) -> None:
    ended = remote(replicas=[stub])
    assert ended.status == 0, ended.stderr
    assert f"the dataset is in {URL}; look at it with: latentwire inspect {URL}" in ended.stderr
    assert str(tmp_path) not in ended.stderr
    assert_complete(downloaded(folder, tmp_path), tasks_of(tasks))
    assert not any(".partial" in name or name.endswith(".tmp") for name in folder.sizes())
    assert list((tmp_path / "work").iterdir()) == []


def test_a_finished_remote_dataset_needs_nothing_more(
    remote: Remote, stub: StubReplica, other_stub: StubReplica, tmp_path: Path
) -> None:
    assert remote(replicas=[stub]).status == 0
    # Another machine, too, sees that there is nothing to do.
    for work in ("work", "elsewhere"):
        ended = remote(replicas=[other_stub], work=work)
        assert ended.status == 0
        assert "nothing to do: all 40 rows are already collected" in ended.stderr
    ended = remote("--top-k", "5", replicas=[other_stub])
    assert ended.status == 2
    assert "--output-dir: was made with other settings: sampling.top_k was 0" in ended.stderr
    assert other_stub.received == []
    assert not (tmp_path / "elsewhere").exists()


def test_failed_rows_of_a_remote_dataset_are_retried(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, tmp_path: Path
) -> None:
    rows = tasks_of(tasks)
    stub.behaviour.task_faults = {task: [422] for _, task in rows[10:30]}
    assert remote(replicas=[stub]).status == 3
    # Left over by a machine that lost its connection before it could clear up.
    builder, latent = SegmentBuilder(), np.zeros((1, 8), np.float32)
    row = Row(0, *rows[0])
    builder.add(finished_record(FinishedRow(row, "another", latent, 1, 1, "stop", (1,), 1)))
    folder.write(".partial/parts/first/1-a.rows", builder.to_bytes())
    stub.received.clear()
    stub.answered.clear()
    stub.behaviour.die_after = 5
    flags = ("--retry-failed", "--replica-timeout", "0.2", "--concurrency", "1")
    assert remote(*flags, replicas=[stub]).status == 1
    # What was there is still whole while the retry is unfinished, and so is the retry.
    assert folder.exists("manifest.json")
    digest = hashlib.sha256(folder.read("manifest.json") or b"").hexdigest()
    folder.write(f".partial/parts/after-{digest[:12]}/1-a.rows", b"")
    unfinished = folder.sizes()
    ended = remote(replicas=[stub], work="elsewhere")
    assert (ended.status, folder.sizes()) == (3, unfinished)
    assert "nothing to do" in ended.stderr
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    assert remote(replicas=[stub]).status == 0
    assert len(stub.received) == 20
    assert_complete(downloaded(folder, tmp_path), rows)
    assert "failures.jsonl" not in folder.sizes()
    assert not any(".partial" in name for name in folder.sizes())


def move_rows(work: Path, folder: Folder) -> None:
    """Let the folder hold the rows of a work directory, as replicas on other machines put them."""
    (path,) = work.glob("*/.partial/rows.log")
    data, builder = path.read_bytes(), SegmentBuilder()
    log = RecordLog(path)
    for ref in log.recover():
        builder.add(parse_record(memoryview(data)[ref.offset :]))
    log.close()
    folder.write(".partial/parts/first/1-a.rows", builder.to_bytes())
    # Of a run that ended before the manifest that another one began with.
    folder.write(".partial/parts/after-0123/1-a.rows", builder.to_bytes()[:-1])
    shutil.rmtree(work)


@pytest.mark.parametrize("num_done", [12, 40])
def test_rows_of_other_machines_are_found_in_the_folder(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, tmp_path: Path, num_done: int
) -> None:
    stub.behaviour.die_after = num_done
    with pytest.MonkeyPatch.context() as patched:
        # The last row is settled, but the run ends before its files are there.
        patched.setattr(Folder, "put", lambda *_: (_ for _ in ()).throw(LocationError("full")))
        flags = ("--replica-timeout", "0.2", "--concurrency", "1")
        assert remote(*flags, replicas=[stub]).status == 1
    move_rows(tmp_path / "work", folder)
    stub.received.clear()
    stub.behaviour.die_after, stub.behaviour.is_dead = None, num_done == 40
    ended = remote("--top-k", "5", replicas=[stub], work="elsewhere")
    assert (ended.status, stub.received) == (2, [])
    assert "was made with other settings: sampling.top_k was 0" in ended.stderr
    ended = remote(replicas=[stub], work="elsewhere")
    assert ended.status == 0, ended.stderr
    assert len(stub.received) == 40 - num_done
    assert_complete(downloaded(folder, tmp_path), tasks_of(tasks))
    assert not any(".partial" in name for name in folder.sizes())


def test_overwrite_replaces_a_remote_dataset(
    remote: Remote,
    stub: StubReplica,
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder.write("README.md", b"mine")
    folder.write("notes/mine.txt", b"mine")
    assert remote("--max-shard-size", "2KB", replicas=[stub]).status == 0
    old = set(folder.sizes())
    removed: list[str] = []
    real = MemoryFileSystem.rm_file

    def rm_file(self: MemoryFileSystem, path: str) -> None:
        removed.append(path.removeprefix("/bucket/out/"))
        real(self, path)

    monkeypatch.setattr(MemoryFileSystem, "rm_file", rm_file)
    assert remote("--overwrite", "--seed", "8", replicas=[stub]).status == 0
    finals = [name for name in removed if name in old]
    assert finals[0] == "manifest.json"
    assert folder.read("README.md") == folder.read("notes/mine.txt") == b"mine"
    manifest = json.loads(folder.read("manifest.json") or b"")
    assert manifest["settings"]["seed"] == 8
    shards = {name for name in folder.sizes() if name.endswith(".arrow")}
    assert len(shards) == 1


def test_an_upload_that_was_cut_short_goes_on_where_it_ended(
    remote: Remote,
    stub: StubReplica,
    folder: Folder,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    real = Folder.put

    def put(self: Folder, name: str, local: Path) -> None:
        if len(sent) % 7 == 6:
            sent.append("")
            raise ConnectionError
        real(self, name, local)
        sent.append(name)

    statuses: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", put)
        patched.setattr("latentwire_batch.output.upload._FILES_AT_A_TIME", 1)
        while statuses[-1:] != [0] and len(statuses) < 20:
            ended = remote("--max-shard-size", "500", replicas=[stub])
            statuses.append(ended.status)
            stub.behaviour.is_dead = True
            if ended.status:
                assert not folder.exists("manifest.json")
        assert "are there already" in ended.stderr
    assert len(statuses) > 3
    names = [name for name in sent if name]
    assert len(names) == len(set(names)) > 20
    assert list((tmp_path / "work").iterdir()) == []
    assert_complete(downloaded(folder, tmp_path), tasks_of(tasks))


def test_an_interrupt_ends_an_upload_which_the_next_run_completes(
    remote: Remote,
    stub: StubReplica,
    folder: Folder,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, is_sent = threading.Event(), threading.Lock()

    def put(*_: object) -> None:
        # Once, and not from each thread of the upload.
        if is_sent.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        # Only an upload that does not wait for it ends before the gate opens.
        gate.wait()

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", put)
        ended = remote(replicas=[stub])
        gate.set()
    assert ended.status == 130
    assert "rerun the same command to resume" in ended.stderr
    assert not folder.exists("manifest.json")
    stub.behaviour.is_dead = True
    assert remote(replicas=[stub]).status == 0
    assert_complete(downloaded(folder, tmp_path), tasks_of(tasks))


def test_the_card_follows_the_files_that_it_names(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before_card = Folder.put, set[str]()

    def put(self: Folder, name: str, local: Path) -> None:
        if name == "README.md":
            before_card.update(self.sizes())
        real(self, name, local)

    monkeypatch.setattr(Folder, "put", put)
    flags = ("--dataset", f"train={tasks}", "--layout", "hub", "--max-shard-size", "3KB")
    assert remote(*flags, replicas=[stub]).status == 0
    assert set(folder.sizes()) - before_card == {"README.md", "manifest.json"}


def test_no_manifest_is_written_over_files_that_somebody_changed_during_the_upload(
    remote: Remote, stub: StubReplica, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Folder.put

    def put(self: Folder, name: str, local: Path) -> None:
        real(self, name, local)
        if name == "hf_dataset/state.json":
            real(self, "data.parquet", local)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "put", put)
        patched.setattr("latentwire_batch.output.upload._FILES_AT_A_TIME", 1)
        ended = remote(replicas=[stub])
    assert ended.status == 1
    assert "--output-dir: 1 files were changed while the others were uploaded" in ended.stderr
    assert not folder.exists("manifest.json")
    assert remote(replicas=[stub]).status == 0


def test_load_dataset_finds_the_splits_of_a_remote_dataset_in_the_hub_layout(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, tmp_path: Path
) -> None:
    other = write_tasks(tmp_path / "other.jsonl", 5)
    inputs = ("--dataset", f"train={tasks}", "--dataset", f"test={other}", "--layout", "hub")
    ended = remote(*inputs, "--max-shard-size", "3KB", replicas=[stub])
    assert ended.status == 0, ended.stderr
    folder.write("data/mine.txt", b"mine")
    num_files = len(folder.sizes())
    copy = downloaded(folder, tmp_path)
    found = datasets.load_dataset(str(copy), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in found.items()} == {"train": 40, "test": 5}
    assert found["train"]["task_id"] == [name for name, _ in tasks_of(tasks)]
    # Fewer files replace them; what is not of the dataset stays.
    assert remote(*inputs, "--overwrite", replicas=[stub]).status == 0
    assert len(folder.sizes()) < num_files
    names = [name for name in folder.sizes() if name.startswith("data/")]
    assert names == [
        "data/mine.txt",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]


def test_a_second_machine_is_told_of_the_first(
    remote: Remote, stub: StubReplica, folder: Folder, tasks: Path, tmp_path: Path
) -> None:
    stub.behaviour.die_after = 9
    wait = ("--replica-timeout", "0.2")
    # No seed given: the second machine takes that of the first.
    assert remote(*wait, replicas=[stub], work="first").status == 1
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    ended = remote("--top-k", "5", replicas=[stub], work="second")
    assert "--output-dir: was made with other settings: sampling.top_k was 0" in ended.stderr
    assert remote(replicas=[stub], work="second").status == 0
    finished = {name: folder.read(name) for name in folder.sizes()}
    stub.received.clear()
    ended = remote("--top-k", "5", replicas=[stub], work="first")
    assert "--output-dir: another run has finished a dataset there" in ended.stderr
    ended = remote(replicas=[stub], work="first")
    assert (ended.status, stub.received) == (0, [])
    assert "another run has finished the same dataset" in ended.stderr
    assert not (tmp_path / "first" / ".partial" / "settings.json").exists()
    assert {name: folder.read(name) for name in folder.sizes()} == finished
    assert_complete(downloaded(folder, tmp_path), tasks_of(tasks))


def test_files_of_a_dataset_without_a_manifest_are_refused(
    remote: Remote, stub: StubReplica, folder: Folder
) -> None:
    folder.write("data.parquet", b"of somebody")
    ended = remote(replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: holds a dataset without a manifest" in ended.stderr
    assert stub.received == []
    assert folder.read("data.parquet") == b"of somebody"


def test_a_place_that_cannot_be_written_shows_before_a_row_is_sent(
    remote: Remote, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    ended = remote(replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: cannot be written: access is denied" in ended.stderr
    assert stub.received == []


def test_a_work_directory_without_a_url_has_no_effect(
    collect: Collect, stub: StubReplica, tmp_path: Path
) -> None:
    ended = collect("--work-dir", str(tmp_path / "work"), replicas=[stub])
    assert ended.status == 0
    assert "--work-dir: no effect" in ended.stderr
    assert not (tmp_path / "work").exists()


def test_shards_of_a_remote_dataset_have_folders_of_their_own(
    remote: Remote, stub: StubReplica, folder: Folder, tmp_path: Path
) -> None:
    flags = ("--chat-template", "auto", "--seed", "7")
    for index in range(2):
        ended = remote("--shard", f"{index}/2", *flags, replicas=[stub])
        assert ended.status == 0, ended.stderr
    assert f"join them with: latentwire merge {URL} -o DATASET" in ended.stderr
    names = set(folder.sizes())
    manifests = [name for name in names if name.endswith("/manifest.json")]
    assert len(manifests) == 2
    assert "shards.json" in names
    assert len(set(stub.dates)) == 1
    ended = remote(replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: holds shards" in ended.stderr
    assert list((tmp_path / "work").iterdir()) == []
