"""`--output-dir hf://datasets/owner/name`, with the real library and a stand-in of the hub."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

import latentwire
from latentwire_batch.compression.command import main as compress
from latentwire_batch.inspection.command import main as inspect
from latentwire_batch.locations import Folder, place_of
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.remote import RemoteDestination
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields
from support.batch.collecting import Collect, write_tasks
from support.batch.hub_server import TOKEN, HubServer, Repository, running_hub
from support.batch.stub_replica import StubReplica

# The library's own way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPOSITORY = "lab/latents"
URL = f"hf://datasets/{REPOSITORY}"
OWN = {".gitattributes": b"lfs", "notes.txt": b"mine"}
MANIFEST = "manifest.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(monkeypatch) as server:
        server.repositories[REPOSITORY] = Repository(False, [OWN])
        yield server


def local_files(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and ".partial" not in path.parts
    }


def assert_equal(hub: HubServer, output: Path) -> None:
    """Compare the last commit with a local output, whose manifest alone has another place."""
    far, near = dict(hub.repositories[REPOSITORY].files), local_files(output)
    assert {name: far.pop(name) for name in OWN} == OWN
    assert far.keys() == near.keys()
    assert {**far, MANIFEST: b""} == {**near, MANIFEST: b""}


def test_a_dataset_reaches_the_hub_in_one_commit(
    hub: HubServer,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = write_tasks(tmp_path / "train.jsonl", 6)
    test = tmp_path / "test.jsonl"
    test.write_text(train.read_text().replace(': "t', ': "u'))
    flags = ("--dataset", f"train={train}", "--dataset", f"test={test}", "--layout", "hub")
    small = ("--max-shard-size", "300")
    place = ("--output-dir", URL, "--work-dir", str(tmp_path / "work"))
    # Of both splits, into both places.
    stub.behaviour.task_faults["Clean window 0 — ☀"] = [422] * 4
    commits = hub.repositories[REPOSITORY].commits
    # The upload breaks after one large file, when no commit holds a file of the dataset.
    hub.faults["upload"] = deque([None, *[400] * 20])
    broken = collect(*flags, *small, *place, replicas=[stub])
    assert (broken.status, TOKEN in broken.stderr) == (1, False)
    assert "cannot be written: the store answered with status 400" in broken.stderr
    assert [sorted(files.keys() - OWN) for files in commits[1:]] == [[".partial/settings.json"]]
    hub.faults.clear()
    stub.received.clear()
    assert collect(*flags, *small, *place).status == 3
    assert stub.received == []
    # What had arrived was not sent again.
    assert len(hub.uploads) == len(set(hub.uploads)) > 2
    assert len(commits) == 3
    assert collect(*flags, *small, replicas=[stub]).status == 3
    assert_equal(hub, output)

    assert len(latentwire.load(URL, split="test")) == 5
    args = ["--compressor", "mean-pool:2", "--output-dir", str(tmp_path / "small")]
    assert compress([URL, *args]) == 0
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    loaded = datasets.load_dataset(REPOSITORY, cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 5, "test": 5}

    # A retry fetches the rows, and files that are left over go.
    assert collect(*flags, *place, "--retry-failed", replicas=[stub]).status == 0
    assert len(commits) == 5
    names = [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        MANIFEST,
    ]
    assert sorted(hub.repositories[REPOSITORY].files.keys() - OWN) == names
    assert inspect([URL, "--verify"]) == 0
    # Starting from scratch removes the manifest, then everything else, before a row is sent.
    assert collect(*flags, *place, "--seed", "8", "--overwrite", replicas=[stub]).status == 0
    assert MANIFEST not in commits[5]
    assert commits[6] == OWN
    assert sorted(hub.repositories[REPOSITORY].files.keys() - OWN) == names


def test_a_repository_that_is_missing_shows_before_a_row_is_sent(
    hub: HubServer, collect: Collect, stub: StubReplica, tmp_path: Path
) -> None:
    place = ("--output-dir", "hf://datasets/lab/none", "--work-dir", str(tmp_path / "work"))
    ended = collect(*place, replicas=[stub])
    assert (ended.status, stub.received) == (2, [])
    assert "--output-dir: cannot be read: no such repository, or it needs a tok" in ended.stderr
    for kind, status, words in (("read", 403, "access is denied"), ("commit", 403, "access is d")):
        hub.faults[kind] = deque([status] * 20)
        ended = collect("--output-dir", URL, *place[2:], replicas=[stub])
        assert (ended.status, stub.received) == (2, [])
        assert words in ended.stderr
        assert TOKEN not in ended.stderr
        hub.faults.clear()


def test_nodes_of_a_cluster_make_no_commits(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path, is_remote=True)
    destination = RemoteDestination(layout, Folder(URL), print)
    assert destination.parts() is None
    assert destination.folder_of_files() is None


def test_a_branch_takes_a_dataset_and_gives_it_back(
    hub: HubServer, collect: Collect, stub: StubReplica, tmp_path: Path, output: Path
) -> None:
    repository = hub.repositories[REPOSITORY]
    assert collect(replicas=[stub]).status == 0
    for branch in ("next", "team/next"):
        repository.branches[branch] = [OWN]
        # A slash in the name of a branch is quoted.
        place = f"{URL}@{branch.replace('/', '%2F')}"
        work = ("--work-dir", str(tmp_path / branch))
        ended = collect("--output-dir", place, *work, replicas=[stub])
        assert ended.status == 0, ended.stderr
        assert repository.commits == [OWN]
        files = dict(repository.branches[branch][-1])
        assert {name: files.pop(name) for name in OWN} == OWN
        assert {**files, MANIFEST: b""} == {**local_files(output), MANIFEST: b""}
        assert inspect([place, "--verify"]) == 0
        assert len(latentwire.load(place)) == 40
        # The rows of a dataset are tasks again.
        for given in (f"{place}/data.parquet", place):
            rows = TaskSource(place_of(given), RowFields("task", None, "task_id")).rows()
            assert len(list(rows)) == 40
    ended = collect("--output-dir", f"{URL}@none", *work, replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: cannot be read: no such branch, tag or commit" in ended.stderr
    ended = collect("--dataset", f"{URL}@none/tasks.jsonl", "--output-dir", str(tmp_path / "new"))
    assert ended.status == 2
    assert "--dataset: cannot be read: no such branch, tag or commit" in ended.stderr
