"""The final files of the hub layout by tasks of a cluster, which run in this process here."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch import collect as collect_module
from latentwire_batch.errors import StorageError
from latentwire_batch.inspection.verification import verify_files
from latentwire_batch.locations import Folder
from latentwire_batch.output.durable import write_json
from latentwire_batch.ray import joining
from latentwire_batch.ray.final_file import FinalFile, WrittenFile
from support.batch.collecting import Collect, write_tasks
from support.batch.stub_replica import StubReplica

# One or two rows of the stub are in a file.
FLAGS = ("--layout", "hub", "--max-shard-size", "900", "--seed", "3", "--columns", "seed")


class FakeRay:
    """Runs tasks at once, on copies, as another node has them."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)

    def __init__(self) -> None:
        self.written: list[str] = []
        self.max_tasks: int | None = None

    def remote(self, work: Callable[[FinalFile], WrittenFile]) -> Any:
        def run(file: FinalFile) -> str:
            copy: FinalFile = pickle.loads(pickle.dumps(file))
            self._results[file.name] = lambda: self._done(work, copy)
            return file.name

        self._results: dict[str, Callable[[], WrittenFile]] = {}
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=run))

    def _done(self, work: Callable[[FinalFile], WrittenFile], file: FinalFile) -> WrittenFile:
        if len(self.written) == self.max_tasks:
            raise StorageError("the output cannot be written: No space left on device")
        self.written.append(file.name)
        result: WrittenFile = pickle.loads(pickle.dumps(work(file)))
        return result

    def wait(self, waiting: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        # Not in the order in which they were begun.
        return waiting[-num_returns:], waiting[:-num_returns]

    def get(self, name: str) -> WrittenFile:
        return self._results[name]()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()

    @contextmanager
    def attached(_settings: object) -> Iterator[FakeRay]:
        yield fake

    monkeypatch.setattr(joining, "attached", attached)
    return fake


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    first, second = write_tasks(tmp_path / "a.jsonl", 7), write_tasks(tmp_path / "b.jsonl", 4)
    return [*FLAGS, "--dataset", f"train={first}", "--dataset", f"validation={second}"]


def on_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "joins_on_cluster", lambda _run, _store: True)


def rows_of(names: list[str], read: Callable[[str], pa.Table]) -> dict[str, pa.Table]:
    """The rows of each split, over all its files in order."""
    splits: dict[str, list[pa.Table]] = {}
    for name in sorted(names):
        splits.setdefault(Path(name).name.partition("-")[0], []).append(read(name))
    return {split: pa.concat_tables(tables) for split, tables in splits.items()}


def local_rows(output: Path) -> dict[str, pa.Table]:
    return rows_of([str(path) for path in (output / "data").iterdir()], pq.read_table)


def test_files_by_tasks_are_those_of_one_process(
    collect: Collect,
    stub: StubReplica,
    ray: FakeRay,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task fails: the files that are whole are not written again."""
    plain, output = tmp_path / "plain", tmp_path / "out"
    collect("--output-dir", str(plain), "--replica", stub.base_url, *flags)
    on_cluster(monkeypatch)
    ray.max_tasks = 2
    args = ("--output-dir", str(output), "--replica", stub.base_url, *flags)
    failed = collect(*args)
    assert (failed.status, ray.written) == (1, ray.written[:2])
    assert "No space left on device" in failed.stderr
    assert not (output / "manifest.json").exists()
    # A file that someone has damaged is not one that is whole.
    (output / ".partial" / "final" / ray.written[1]).write_bytes(b"PAR1")
    ray.max_tasks = None
    done = collect(*args)
    assert done.status == 0, done.stderr
    assert "1 are there already" in done.stderr
    assert ray.written.count(ray.written[0]) == 1
    assert ray.written.count(ray.written[1]) == 2
    made, expected = local_rows(output), local_rows(plain)
    assert list(made) == ["train", "validation"]
    assert len(list((output / "data").iterdir())) > 4
    for split, table in expected.items():
        assert made[split].equals(table, check_metadata=True)
    manifest, expected_manifest = (
        (folder / "manifest.json").read_text().partition('"counts"')[2].partition("}")[0]
        for folder in (output, plain)
    )
    assert manifest == expected_manifest
    assert {path.name for path in output.iterdir()} == {path.name for path in plain.iterdir()}
    stated = json.loads((output / "manifest.json").read_text())
    assert set(stated["files"]) == set(ray.written)
    assert verify_files(output, stated)[1] == []


@pytest.mark.parametrize("is_changed", [False, True])
def test_tasks_put_their_files_where_the_output_goes(
    collect: Collect,
    stub: StubReplica,
    ray: FakeRay,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_changed: bool,
) -> None:
    plain, memory = tmp_path / "plain", fsspec.filesystem("memory")
    memory.store.clear()
    temporary, put = tmp_path / "temporary", Folder.put
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def nameless_put(folder: Folder, name: str, local: Path) -> None:
        """A task that is killed here leaves no file on its node."""
        assert list(temporary.iterdir()) == []
        put(folder, name, local)

    monkeypatch.setattr(Folder, "put", nameless_put)
    collect("--output-dir", str(plain), "--replica", stub.base_url, *flags)
    on_cluster(monkeypatch)
    args = ("--output-dir", "memory://joined/out", "--work-dir", str(tmp_path / "work"))

    def lose_a_file(path: Path, value: dict[str, Any]) -> None:
        """Remove or change one that is whole before the manifest is written."""
        write_json(path, value)
        name = f"/joined/out/{ray.written[0]}"
        content = memory.cat_file(name)
        memory.rm_file(name)
        if is_changed:
            memory.pipe_file(name, bytes(len(content)))

    monkeypatch.setattr(joining, "write_json", lose_a_file)
    lost = collect(*args, "--replica", stub.base_url, *flags)
    assert lost.status == 1
    # The card alone goes through this process.
    assert "uploading 1 files" in lost.stderr
    assert "rerun the same command to write them again" in lost.stderr
    assert not memory.exists("/joined/out/manifest.json")
    monkeypatch.setattr(joining, "write_json", write_json)
    num_files = len(ray.written)
    done = collect(*args, "--replica", stub.base_url, *flags)
    assert done.status == 0, done.stderr
    assert ray.written[num_files:] == ray.written[:1]
    names = [name for name in memory.find("/joined/out") if name.endswith(".parquet")]
    made = rows_of(names, lambda name: pq.read_table(name, filesystem=memory))
    for split, table in local_rows(plain).items():
        assert made[split].equals(table, check_metadata=True)
    assert sorted(name.removeprefix("/joined/out/") for name in memory.find("/joined/out")) == [
        "README.md",
        *sorted(set(ray.written)),
        "manifest.json",
    ]
