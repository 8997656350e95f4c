"""Tasks and datasets behind URLs are read like those of this machine."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

import latentwire
from latentwire.errors import DatasetError
from latentwire_batch.compression.command import main as compress
from latentwire_batch.errors import InputError
from latentwire_batch.inspection.command import main as inspect
from latentwire_batch.locations import Folder, RemotePath, place_of
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import Row, RowFields
from support.batch.collecting import Collect
from support.batch.s3_server import BUCKET, S3Server, running_s3
from support.batch.stub_replica import StubReplica
from support.stores.gcs_server import without_gcsfs

FIELDS = RowFields("task", None, "id")
ROWS = [{"id": f"t{i}", "task": f"Clean window {i} — ☀"} for i in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
EXPECTED = [Row(i, str(row["id"]), row["task"]) for i, row in enumerate(ROWS)]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(monkeypatch) as server:
        yield server


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def arrow_bytes(write: Callable[[pa.Table, pa.BufferOutputStream], None]) -> bytes:
    sink = pa.BufferOutputStream()
    write(pa.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue())


def write_ipc(table: pa.Table, sink: pa.BufferOutputStream) -> None:
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def arrow_compressed(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())


# By name; the content decides, so the names say nothing to the reader.
INPUTS: dict[str, Callable[[], bytes]] = {
    "jsonl": lambda: LINES,
    "json": lambda: json.dumps(ROWS).encode(),
    "gzip": lambda: gzip.compress(LINES),
    "gzip of two members": lambda: gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    "bzip2": lambda: bz2.compress(LINES),
    "xz": lambda: lzma.compress(LINES),
    "xz of two streams": lambda: lzma.compress(LINES[:500]) + lzma.compress(LINES[500:]),
    "xz of two streams with padding": lambda: (
        lzma.compress(LINES[:500]) + bytes(8) + lzma.compress(LINES[500:]) + bytes(4)
    ),
    "bzip2 of two streams": lambda: bz2.compress(LINES[:500]) + bz2.compress(LINES[500:]),
    "lzma": lambda: lzma.compress(LINES, lzma.FORMAT_ALONE),
    "zstd": lambda: arrow_compressed(LINES, "zstd"),
    "zstd of two frames": lambda: (
        arrow_compressed(LINES[:500], "zstd") + arrow_compressed(LINES[500:], "zstd")
    ),
    "lz4": lambda: arrow_compressed(LINES, "lz4"),
    "gzip of a list": lambda: gzip.compress(json.dumps(ROWS).encode()),
    "zstd of a list": lambda: arrow_compressed(json.dumps(ROWS).encode(), "zstd"),
    "parquet": lambda: arrow_bytes(pq.write_table),
    "arrow": lambda: arrow_bytes(write_ipc),
}


@pytest.mark.parametrize("name", INPUTS)
def test_a_compressed_file_is_read_wherever_it_is(
    name: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    data = INPUTS[name]()
    memory.pipe_file("/in/tasks", data)
    (tmp_path / "tasks").write_bytes(data)
    for place in (tmp_path / "tasks", place_of("memory://in/tasks")):
        source = TaskSource(place, FIELDS)
        # The input is read twice.
        assert list(source.rows()) == list(source.rows()) == EXPECTED


def overwritten(data: bytes) -> bytes:
    start, end = len(data) // 4, len(data) * 3 // 4
    return data[:start] + b"\xff" * (end - start) + data[end:]


def with_one_bit_changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a cut end": lambda data: data[:-100],
    "a cut last byte": lambda data: data[:-1],
    "little more than the mark": lambda data: data[:9],
    "a damaged middle": overwritten,
}
# Whose checksum is behind rows that the damage has made; zstd and lz4 need not have one.
CHECKED = ["gzip", "bzip2", "xz", "gzip of a list", "gzip of two members"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "gzip of a list"])
def test_damaged_compressed_data_is_refused_wherever_it_is(
    name: str, damage: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    refused(
        DAMAGE[damage](INPUTS[name]()), f"the {name.split()[0]} data is damaged", memory, tmp_path
    )


@pytest.mark.parametrize("name", CHECKED)
def test_rows_that_damage_has_made_are_not_taken_for_mistakes_of_the_author(
    name: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    data = with_one_bit_changed(INPUTS[name]())
    refused(data, f"the {name.split()[0]} data is damaged", memory, tmp_path)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_a_compressed_file_of_nothing_is_refused_wherever_it_is(
    name: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
    }
    data = compress[name](b"") if name in compress else arrow_compressed(b"", name)
    refused(data, "^holds no data$", memory, tmp_path)
    refused(b"", "^is empty$", memory, tmp_path)


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_a_later_stream_whose_start_is_damaged_is_not_taken_for_the_end(
    name: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    stream = INPUTS[name]()
    for damaged in (b"?" + stream[1:], stream[:3]):
        refused(stream + damaged, f"the {name} data is damaged", memory, tmp_path)


def refused(data: bytes, reason: str, memory: MemoryFileSystem, tmp_path: Path) -> None:
    memory.pipe_file("/in/tasks", data)
    (tmp_path / "tasks").write_bytes(data)
    for place in (tmp_path / "tasks", place_of("memory://in/tasks")):
        with pytest.raises(InputError, match=reason):
            list(TaskSource(place, FIELDS).rows())


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("tasks.gz", "zstd"),
        ("tasks.xz", "gzip"),
        ("tasks.zst", "jsonl"),
        ("tasks.jsonl", "xz"),
        ("tasks.parquet", "bzip2"),
        ("tasks.json", "parquet"),
    ],
)
def test_a_name_that_lies_misleads_nobody(
    name: str, held: str, memory: MemoryFileSystem, tmp_path: Path
) -> None:
    memory.pipe_file(f"/in/{name}", INPUTS[held]())
    (tmp_path / name).write_bytes(INPUTS[held]())
    for place in (tmp_path / name, place_of(f"memory://in/{name}")):
        assert list(TaskSource(place, FIELDS).rows()) == EXPECTED


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "jsonl", "parquet"])
def test_a_store_that_refuses_is_not_taken_for_damaged_data(
    name: str, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/in/tasks", INPUTS[name]())
    source = TaskSource(place_of("memory://in/tasks"), FIELDS)
    assert list(source.rows()) == EXPECTED

    kind = type(memory.open("/in/tasks"))
    # The first one tells the compression.
    answers = iter([kind.read])

    def read(self: object, length: int = -1) -> bytes:
        answer = next(answers, None)
        if answer is None:
            raise PermissionError(13, "denied", "/home/me")
        return bytes(answer(self, length))

    monkeypatch.setattr(kind, "read", read)
    with pytest.raises(InputError, match="^cannot be read: access is denied$"):
        list(source.rows())


def test_tasks_in_a_bucket_are_collected(
    s3: S3Server, collect: Collect, stub: StubReplica, output: Path
) -> None:
    for name, make in INPUTS.items():
        s3.filesystem().pipe_file(f"{BUCKET}/in/{name}", make())
        source = TaskSource(place_of(f"s3://{BUCKET}/in/{name}"), FIELDS, limit=12)
        assert list(source.rows()) == EXPECTED[:12]
    url = f"s3://{BUCKET}/in/zstd of two frames"
    ended = collect("--dataset", url, "--limit", "12", replicas=[stub])
    assert ended.status == 0, ended.stderr
    table = pq.read_table(output / "data.parquet")
    assert table["task"].to_pylist() == [row["task"] for row in ROWS[:12]]


def test_parquet_is_read_by_ranges_of_the_wanted_columns(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    table = pa.Table.from_pylist(ROWS)
    ballast = pa.array([rng.bytes(200_000) for _ in ROWS], pa.binary())
    sink = pa.BufferOutputStream()
    pq.write_table(table.append_column("latent", ballast), sink, row_group_size=100)
    s3.filesystem().pipe_file(f"{BUCKET}/tasks", bytes(sink.getvalue()))
    num_read = 0
    real = s3fs.core.S3File._fetch_range

    def fetch(self: s3fs.core.S3File, start: int, end: int) -> bytes:
        nonlocal num_read
        data: bytes = real(self, start, end)
        num_read += len(data)
        return data

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fetch)
    assert list(TaskSource(place_of(f"s3://{BUCKET}/tasks"), FIELDS).rows()) == EXPECTED
    # The first block tells the format; a buffer may reach into the next column.
    assert num_read < len(sink.getvalue()) / 2


def test_a_folder_of_parquet_files_in_a_bucket_is_one_dataset(s3: S3Server) -> None:
    filesystem = s3.filesystem()
    table = pa.Table.from_pylist(ROWS)
    for number in range(2):
        part = table.slice(number * 150, 150)
        pq.write_table(part, f"{BUCKET}/in/part-{number}.parquet", filesystem=filesystem)
    source = TaskSource(place_of(f"s3://{BUCKET}/in"), FIELDS)
    assert list(source.rows()) == EXPECTED
    with pytest.raises(InputError, match="holds Parquet files in folders; pass one of: in"):
        list(TaskSource(place_of(f"s3://{BUCKET}/"), FIELDS).rows())


def test_a_saved_dataset_in_a_bucket_is_read(s3: S3Server, tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    s3.filesystem().put(str(tmp_path / "saved"), f"{BUCKET}/in", recursive=True)
    place = place_of(f"s3://{BUCKET}/in")
    place = place if place.is_dir() and (place / "state.json").exists() else place / "saved"
    assert list(TaskSource(place, FIELDS).rows()) == EXPECTED


def test_a_file_that_changes_between_two_readings_is_refused(memory: MemoryFileSystem) -> None:
    memory.pipe_file("/in/tasks", LINES)
    source = TaskSource(place_of("memory://in/tasks"), FIELDS)
    assert list(source.rows()) == EXPECTED
    memory.pipe_file("/in/tasks", LINES[:-1] + b" ")
    with pytest.raises(InputError, match="the file has changed since it was first read"):
        list(source.rows())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"s3://{BUCKET}/none.jsonl", "no such file or folder"),
        ("s3://nowhere/none.jsonl", "cannot be read: the bucket does not exist"),
        ("gs://b/x.jsonl", "cannot be read: gs:// needs the gcs extra: pip install"),
        ("s3://id:secret@b/x.jsonl", "cannot be read: must not hold a user or a key"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_an_input_that_cannot_be_read_says_why(
    collect: Collect, url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gcsfs(monkeypatch)
    ended = collect("--dataset", url)
    assert ended.status == 2
    assert f"--dataset: {reason}" in ended.stderr
    assert "secret" not in ended.stderr


def test_a_stored_dataset_in_a_bucket_is_loaded_inspected_and_compressed(
    s3: S3Server, collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    assert collect(replicas=[stub]).status == 0
    s3.filesystem().put(str(output), f"{BUCKET}/out", recursive=True)
    names = Folder(f"s3://{BUCKET}").sizes()
    url = f"s3://{BUCKET}/out" + ("" if "out/manifest.json" in names else f"/{output.name}")
    near, far = latentwire.load(output), latentwire.load(url)
    assert len(far) == len(near) == 40
    for index in (0, 17, 39):
        assert far[index].task_id == near[index].task_id
        np.testing.assert_array_equal(far[index].hidden_state, near[index].hidden_state)
    assert [row.plan for row in far] == [row.plan for row in near]
    assert len(pickle.loads(pickle.dumps(far))) == 40
    assert inspect([url]) == 0
    out = tmp_path / "compressed"
    with redirect_stderr(StringIO()) as stderr:
        status = compress([url, "--compressor", "mean-pool:2", "--output-dir", str(out)])
    assert status == 0, stderr.getvalue()
    assert len(latentwire.load(out)) == 40


def test_arrow_files_in_a_bucket_are_refused_where_rows_are_read_by_index(
    memory: MemoryFileSystem,
) -> None:
    memory.pipe_file("/in/tasks", arrow_bytes(write_ipc))
    with pytest.raises(DatasetError, match="cannot be read by index behind a URL"):
        latentwire.load("memory://in/tasks")


def test_a_url_is_no_directory_for_compress(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["in", "--compressor", "mean-pool:2", "--output-dir", "s3://bucket/out"]
    assert compress(args) == 2
    assert "--output-dir: must be a directory of this machine" in capsys.readouterr().err


def test_a_remote_path_has_the_names_of_pathlib() -> None:
    path = RemotePath("s3://bucket/a/b.jsonl")
    assert (path.name, path.parent.name) == ("b.jsonl", "a")
    assert str(path.parent / "c") == "s3://bucket/a/c"
    assert path == place_of("s3://bucket/a/b.jsonl")
    assert place_of("file:///tmp/a%20b") == Path("/tmp/a b")
    assert place_of("C://odd") == Path("C://odd")
    assert repr(RemotePath("sftp://me:word@host/a")) == "RemotePath('sftp://host/a')"


def test_names_with_marks_of_urls_are_found_in_a_folder(memory: MemoryFileSystem) -> None:
    for name in ("part #1?.jsonl", "b.txt"):
        memory.pipe_file(f"/in/{name}", b"{}")
    (found,) = RemotePath("memory://in").glob("*.jsonl")
    assert (found.name, found.read_bytes()) == ("part #1?.jsonl", b"{}")
