"""A collection into an S3 bucket on loopback, whose process is killed while it uploads."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import s3fs

from support.batch.collecting import Collect
from support.batch.s3_server import BUCKET, S3Server, Watcher, running_s3
from support.batch.stub_replica import StubReplica

OUT = f"{BUCKET}/a folder/out"
# One row to a shard, or two.
SMALL_SHARDS = ("--max-shard-size", "300")
NUM_KILLS = 2
MAX_IN_FLIGHT = 2


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(monkeypatch) as server:
        yield server


def version_counts(filesystem: s3fs.S3FileSystem) -> dict[str, int]:
    """Count how often each object was written."""
    counts: dict[str, int] = {}
    answer = filesystem.call_s3("list_object_versions", Bucket=BUCKET)
    for version in answer["Versions"]:
        counts[version["Key"]] = counts.get(version["Key"], 0) + 1
    return counts


@pytest.mark.slow
def test_a_killed_upload_goes_on_and_no_reader_sees_half_a_dataset(
    collect: Collect, stub: StubReplica, s3: S3Server, output: Path, tasks: Path, tmp_path: Path
) -> None:
    filesystem = s3.filesystem()
    filesystem.call_s3(
        "put_bucket_versioning", Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"}
    )
    command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks), "--seed", "7"]
    command += ["--output-dir", f"s3://{OUT}", "--work-dir", str(tmp_path / "work")]
    command += ["--max-new-tokens", "12", "--replica", stub.base_url, *SMALL_SHARDS]
    rng = random.Random(11)
    with Watcher(filesystem, OUT) as watcher:
        for number in range(NUM_KILLS):
            num_before = len(watcher.lists[-1])
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            watcher.wait_for(num_before + rng.randint(2, 9))
            process.kill()
            assert process.wait() == -9, f"ended by itself before kill {number}"
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
    assert "are there already" in done.stderr
    final = set(filesystem.find(OUT))
    files = {name.removeprefix(f"{OUT}/") for name in final}
    assert len([name for name in files if name.endswith(".arrow")]) > 30
    for names in watcher.lists:
        assert "manifest.json" not in names or files <= names
    # Whole files are not sent twice; those in flight when the process was killed may be.
    counts = version_counts(filesystem)
    again = sum(count - 1 for name, count in counts.items() if name in final)
    assert again <= NUM_KILLS * MAX_IN_FLIGHT
    assert collect(*SMALL_SHARDS, replicas=[stub]).status == 0
    assert_same(s3, output)


def assert_same(s3: S3Server, local: Path) -> None:
    """Compare the dataset in the bucket with one that was collected into a directory."""
    options = {"endpoint_url": s3.endpoint, "key": "a-key-id", "secret": "a-secret"}
    far = datasets.load_from_disk(f"s3://{OUT}/hf_dataset", storage_options=options)
    near = datasets.load_from_disk(str(local / "hf_dataset"))
    assert far.data.table.equals(near.data.table)
    table = pq.read_table(f"{OUT}/data.parquet", filesystem=s3.filesystem())
    assert table.equals(pq.read_table(local / "data.parquet"))


def test_workers_collect_splits_into_a_bucket(
    collect: Collect, stub: StubReplica, s3: S3Server, tmp_path: Path, tasks: Path
) -> None:
    """The workers' logs are local files, and the first process alone uploads."""
    flags = ("--dataset", f"train={tasks}", "--dataset", f"test={tasks}", "--layout", "hub")
    place = ("--output-dir", f"s3://{OUT}", "--work-dir", str(tmp_path / "work"))
    ended = collect(*flags, *place, "--workers", "2", replicas=[stub])
    assert (ended.status, "80/80 rows" in ended.stderr) == (0, True), ended.stderr
    assert collect(*flags, "--output-dir", str(tmp_path / "near"), replicas=[stub]).status == 0
    filesystem = s3.filesystem()
    names = [f"{split}-00000-of-00001.parquet" for split in ("test", "train")]
    assert [Path(name).name for name in filesystem.find(f"{OUT}/data")] == names
    for name in names:
        far = pq.read_table(f"{OUT}/data/{name}", filesystem=filesystem)
        assert far.equals(pq.read_table(tmp_path / "near" / "data" / name))
    # A finished dataset starts no worker.
    stub.received.clear()
    assert collect(*flags, *place, "--workers", "2", replicas=[stub]).status == 0
    assert stub.received == []


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_missing_shows_before_a_row_is_sent(
    collect: Collect, stub: StubReplica, tmp_path: Path
) -> None:
    work = ("--work-dir", str(tmp_path / "work"))
    ended = collect("--output-dir", "s3://nowhere/out", *work, replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: cannot be read: the bucket does not exist" in ended.stderr
    assert stub.received == []
    assert list(tmp_path.glob("work/*")) == []
