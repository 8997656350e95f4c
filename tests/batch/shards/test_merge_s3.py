"""Shards in an S3 bucket on loopback, merged into it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.batch.collecting import Collect, Ended
from support.batch.dataset_oracle import assert_equal_datasets, collect_shards
from support.batch.s3_server import BUCKET, S3Server, running_s3
from support.batch.stub_replica import StubReplica

Merge = Any
OUT, DATASET = f"{BUCKET}/a folder/out", f"{BUCKET}/dataset"
# Several files in every shard.
SMALL_FILES = ("--max-shard-size", "600")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(monkeypatch) as server:
        yield server


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def names_in(s3: S3Server, folder: str) -> set[str]:
    return {name.removeprefix(f"{folder}/") for name in s3.filesystem().find(folder)}


def fetched(s3: S3Server, folder: str, target: Path) -> Path:
    s3.filesystem().get(f"{folder}/", str(target), recursive=True)
    return target


def collect_to_bucket(
    collect: Collect, stub: StubReplica, work: Path, count: int, *flags: str
) -> list[Ended]:
    place = ("--output-dir", f"s3://{OUT}", "--work-dir", str(work))
    return collect_shards(collect, stub, count, *place, *SMALL_FILES, *flags)


def test_shards_in_a_bucket_are_merged_into_a_bucket(
    collect: Collect, merge: Any, stub: StubReplica, s3: S3Server, tmp_path: Path, work: Path
) -> None:
    whole, flags = tmp_path / "whole", ("--limit", "7", "--storage-dtype", "int8")
    assert collect(*flags, *SMALL_FILES, "--output-dir", str(whole), replicas=[stub]).status == 0
    ended = collect_to_bucket(collect, stub, work, 2, *flags)
    assert [one.status for one in ended] == [0] * 2
    assert f"join them with: latentwire merge 's3://{OUT}' -o DATASET" in ended[-1].stderr

    def merged(*sources: str, target: str = f"s3://{DATASET}", more: tuple[str, ...] = ()) -> Ended:
        options = ("--work-dir", str(work), *SMALL_FILES, *more)
        result: Ended = merge(*options, sources=sources, target=target)
        return result

    # What is left of a merge on another machine that ended while it uploaded.
    for name, content in {
        ".partial/settings.json": b'{"merged": {}}',
        "data.parquet": b"a",
    }.items():
        s3.filesystem().pipe_file(f"{DATASET}/{name}", content)
    done = merged(f"s3://{OUT}")
    assert done.status == 0, done.stderr
    assert_equal_datasets(fetched(s3, DATASET, tmp_path / "fetched"), whole)
    files = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert names_in(s3, DATASET) == files
    assert list(work.iterdir()) == []
    # What is left of one that was lost right after its manifest.
    claim = f"{DATASET}/.partial/settings.json"
    s3.filesystem().pipe_file(claim, b'{"merged": {}, "rows": "first"}')
    again = merged(f"s3://{OUT}/", target=f"s3://{DATASET}/")
    assert (again.status, "nothing to do: all 7 rows" in again.stderr) == (0, True)
    assert names_in(s3, DATASET) == files
    # One shard here, and one in the bucket that has two names.
    first, second = (f"{OUT}/shard-0000{index}-of-00002" for index in range(2))
    near = fetched(s3, first, tmp_path / "shard-00000-of-00002")
    mixed = merged(f"s3a://{second}", f"s3://{second}/", str(near), target=str(tmp_path / "mixed"))
    assert mixed.status == 0, mixed.stderr
    assert_equal_datasets(tmp_path / "mixed", whole)
    # The same number of bytes, but of other rows.
    name = f"hf_dataset/{next(path.name for path in near.glob('hf_dataset/*.arrow'))}"
    content = s3.filesystem().cat_file(f"{first}/{name}")
    s3.filesystem().pipe_file(f"{first}/{name}", content[:-9] + b"\x01" + content[-8:])
    damaged = merged(f"s3://{OUT}", more=("--overwrite",))
    assert damaged.status == 1
    assert f"shard 0/2: {name} has changed since it was written" in damaged.stderr
    assert names_in(s3, DATASET) <= {".partial/settings.json"}
    assert list(work.iterdir()) == []
    # As other machines see unfinished runs.
    for folder in (second, f"{BUCKET}/other", f"{BUCKET}/third"):
        settings = b'{"merged": {}}' if folder.endswith("third") else b'{"seed": 1}'
        s3.filesystem().pipe_file(f"{folder}/.partial/settings.json", settings)
    refusals = {
        (f"s3://{BUCKET}/nothing",): f"s3://{BUCKET}/nothing: no such directory",
        ("s3://nowhere/out",): "s3://nowhere/out: cannot be read: the bucket does not exist",
        (f"s3://{OUT}",): "shard 1/2 is unfinished: rerun its collection",
        (f"s3://{first}",): "shard 1/2 is missing",
    }
    for sources, words in refusals.items():
        refused = merged(*sources)
        assert (refused.status, words in refused.stderr) == (2, True), refused.stderr
    s3.filesystem().rm(f"{second}/.partial", recursive=True)
    targets = {
        f"s3a://{second}/inside": "is the folder of shard 1/2, or inside of it",
        f"s3://{BUCKET}/other": "holds an unfinished collection; --overwrite",
    }
    for target, words in targets.items():
        refused = merged(f"s3://{OUT}", target=target)
        assert (refused.status, words in refused.stderr) == (2, True), refused.stderr
    place = ("--output-dir", f"s3://{BUCKET}/third", "--work-dir", str(work))
    refused = collect(*place, replicas=[stub])
    assert (refused.status, "holds an unfinished merge" in refused.stderr) == (2, True)


KILLED = """
import os, signal, sys
import latentwire_batch.output.upload, latentwire_batch.shards.rows
from latentwire_batch.shards.merge_command import main
from latentwire_batch.locations import Folder
name, left = sys.argv[1], [int(sys.argv[2])]
inner = getattr(Folder, name)
def counted(*args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args)
setattr(Folder, name, counted)
main(sys.argv[3:])
"""


# Processes that are killed, each of which imports the libraries again.
@pytest.mark.slow
def test_a_killed_merge_into_a_bucket_resumes(
    collect: Collect, merge: Any, stub: StubReplica, s3: S3Server, tmp_path: Path, work: Path
) -> None:
    whole, flags = tmp_path / "whole", ("--limit", "18")
    assert collect(*flags, *SMALL_FILES, "--output-dir", str(whole), replicas=[stub]).status == 0
    collect_to_bucket(collect, stub, work, 4, *flags)
    options = (*SMALL_FILES, "--work-dir", str(work))
    command = [sys.executable, "-c", KILLED]
    # While a shard's file is copied, and while the fifth file of the dataset is uploaded.
    for place in (("fetch", "2"), ("put", "5")):
        args = [*command, *place, f"s3://{OUT}", "-o", f"s3://{DATASET}", *options]
        process = subprocess.run(args, stderr=subprocess.DEVNULL, timeout=180, check=False)
        assert process.returncode == -signal.SIGKILL, place
        assert "manifest.json" not in names_in(s3, DATASET)
    ended = merge(*options, sources=(f"s3://{OUT}",), target=f"s3://{DATASET}")
    assert (ended.status, "are there already" in ended.stderr) == (0, True), ended.stderr
    assert_equal_datasets(fetched(s3, DATASET, tmp_path / "fetched"), whole)
    assert "manifest.json" in names_in(s3, DATASET)
    assert not [name for name in names_in(s3, DATASET) if name.startswith(".")]
    assert list(work.iterdir()) == []
