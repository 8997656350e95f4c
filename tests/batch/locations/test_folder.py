from __future__ import annotations

import copy
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from pydantic import TypeAdapter, ValidationError

from latentwire_batch.locations import Folder, GivenPlace, LocationError, place_of
from latentwire_batch.locations.remote_path import RemotePath
from support.batch.s3_server import BUCKET, S3Server, running_s3
from support.stores.gcs_server import running_gcs, without_gcsfs

PLACES = ("file", "path", "memory", "s3", "gs")
# More than two parts of a file that goes in parts.
LARGE_BYTES = 40 << 20


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3(monkeypatch) as server:
        yield server


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with running_gcs(monkeypatch):
        yield


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    match request.param:
        case "s3":
            request.getfixturevalue("s3")
            return Folder(f"s3://{BUCKET}/a folder/out")
        case "gs":
            request.getfixturevalue("gcs")
            return Folder(f"gs://{BUCKET}/a folder/out")
        case "memory":
            fsspec.filesystem("memory").store.clear()
            return Folder("memory://out/plans")
        case "file":
            return Folder(f"file://{tmp_path}/far/out")
        case _:
            return Folder(str(tmp_path / "far" / "out"))


def _local(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "local"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("folder", PLACES, indirect=True)
def test_a_folder_holds_what_was_put_into_it(folder: Folder, tmp_path: Path) -> None:
    assert folder.sizes() == {}
    assert folder.read("x") is None
    assert folder.size("x") is None
    folder.put("b/x.bin", _local(tmp_path, b"one"))
    folder.write("a.json", b"{}")
    before = folder.checksum("b/x.bin")
    assert folder.sizes() == {"a.json": 2, "b/x.bin": 3}
    folder.put("b/x.bin", _local(tmp_path, b"two"))
    assert folder.read("b/x.bin") == b"two"
    assert folder.checksum("b/x.bin") != before
    folder.fetch("b/x.bin", tmp_path / "back" / "x")
    assert (tmp_path / "back" / "x").read_bytes() == b"two"
    other = copy.deepcopy(folder)
    assert other.exists("a.json")
    folder.remove(["a.json", "never.json"])
    assert folder.sizes() == {"b/x.bin": 3}
    assert not other.exists("a.json")


@pytest.mark.parametrize("folder", PLACES, indirect=True)
def test_of_several_that_create_one_file_one_succeeds(folder: Folder) -> None:
    written: list[bytes] = []

    def create(data: bytes) -> None:
        if folder.below("records").create("1.json", data):
            written.append(data)

    # The store of "memory" is not made for several threads.
    count = 1 if folder.url.startswith("memory") else 6
    threads = [threading.Thread(target=create, args=(b"%d" % index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("records/1.json") == b"".join(written)
    assert len(written) == 1
    create(b"late")
    assert list(folder.sizes()) == ["records/1.json"]
    assert len(written) == 1


def test_a_large_file_goes_to_s3_in_parts(s3: S3Server, tmp_path: Path) -> None:
    folder = Folder(f"s3://{BUCKET}/out")
    data = bytes(range(256)) * (LARGE_BYTES // 256)
    folder.put("large", _local(tmp_path, data))
    # The mark of an object that was put together of parts.
    assert s3.filesystem().info(f"{BUCKET}/out/large")["ETag"].endswith('-5"')
    folder.fetch("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


# Not "memory": its files are not made for several threads.
@pytest.mark.parametrize("folder", ["file", "path"], indirect=True)
def test_a_reader_never_sees_a_part_of_a_file(folder: Folder, tmp_path: Path) -> None:
    """Where a file grows as it is written, it gets its name at the end."""
    sizes: set[int | None] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.add(folder.sizes().get("x"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        folder.put("x", _local(tmp_path, bytes(LARGE_BYTES)))
    finally:
        done.set()
        watcher.join()
    assert sizes <= {None, LARGE_BYTES}
    assert list(folder.sizes()) == ["x"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("gs://b/x", 'gs:// needs the gcs extra: pip install "latentwire[gcs]"'),
        ("gcs://b/x", 'gcs:// needs the gcs extra: pip install "latentwire[gcs]"'),
        ("abfs://b/x", "abfs:// needs another package: Install adlfs"),
        ("s4://b/x", "no package for URLs that begin with s4://"),
        ("s3://", "must name more than s3://"),
        ("s3:///x", "names no bucket between s3:// and the next /"),
        ("s3://b/../x", "must not hold . or .. between slashes"),
        ("hf://datasets/a/b/./x", "must not hold . or .. between slashes"),
        ("s3://id:secret@b/x", "must not hold a user or a key"),
        ("S3://id:secret@b/x", "must not hold a user or a key"),
        ("hf://user:secret@datasets/a/b", "must not hold a user or a key"),
    ],
)
def test_a_place_that_cannot_be_opened_says_what_to_do(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gcsfs(monkeypatch)
    with pytest.raises(LocationError, match="^" + reason.replace("[", r"\[")) as caught:
        Folder(url).sizes()
    assert caught.value.is_users
    assert "secret" not in caught.value.reason


@pytest.mark.usefixtures("gcs")
def test_a_bucket_of_google_cloud_storage_that_is_missing_is_named() -> None:
    assert Folder("gs://nowhere/out").read("manifest.json") is None
    with pytest.raises(LocationError, match="the bucket does not exist"):
        Folder("gs://nowhere/out").write("x", b"")
    with pytest.raises(LocationError, match="the bucket does not exist"):
        Folder("gs://nowhere/out").create("x", b"")


@pytest.mark.usefixtures("s3")
def test_errors_of_a_store_have_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocationError, match="the bucket does not exist") as caught:
        Folder("s3://nowhere/out").read("manifest.json")
    assert caught.value.is_users
    with pytest.raises(LocationError, match="the bucket does not exist"):
        Folder("s3://nowhere/out").sizes()
    with pytest.raises(LocationError, match="the bucket does not exist"):
        Folder("s3://nowhere/out").write("x", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    type(Folder("s3://x/y").filesystem).clear_instance_cache()
    with pytest.raises(LocationError, match="no credentials are found"):
        Folder(f"s3://{BUCKET}/out").write("x", b"")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a b/c%20d/", "/a b/c d"),
        ("file://localhost/a/%E2%98%80#?", "/a/☀#?"),
        ("FILE:///a", "/a"),
        ("/a b%20#?/☀/", "/a b%20#?/☀"),
        ("C://a", "C://a"),
    ],
)
def test_a_path_of_this_machine_is_found_in_a_text(text: str, path: str) -> None:
    assert place_of(text) == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{BUCKET}",
        f"S3://{BUCKET}/A/b",
        f"s3://{BUCKET}/a//b",
        f"s3://{BUCKET}/a b/%20+☀/",
        f"s3://{BUCKET}/a?b=c&d#e",
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_url_of_an_object_store_is_the_name_that_it_says(url: str, tmp_path: Path) -> None:
    folder = Folder(url)
    folder.write("x y/%20?#.json", b"{}")
    folder.put("data", _local(tmp_path, b"one"))
    assert folder.sizes() == {"data": 3, "x y/%20?#.json": 2}
    assert place_of(f"{url.rstrip('/')}/data").stat().st_size == 3
    rest = url[len(f"s3://{BUCKET}") :].strip("/")
    names = Folder(f"s3://{BUCKET}").sizes()
    assert set(names) == {f"{rest}/{name}".lstrip("/") for name in folder.sizes()}


def test_a_url_that_lost_a_slash_is_no_directory() -> None:
    for text in ("s3:/bucket/x", "s3:bucket", "GS:/b", "hf:/datasets/a/b", "https:/host/x"):
        with pytest.raises(ValidationError, match="a URL has two slashes"):
            TypeAdapter(GivenPlace).validate_python(text)
    for text in ("s3", "s3/x", "a/s3:/x", "hf.jsonl", "s3x:/y"):
        assert TypeAdapter(GivenPlace).validate_python(text) == Path(text)


def test_a_url_is_shown_without_keys() -> None:
    assert Folder("sftp://me:word@host/a/out/").shown == "sftp://host/a/out"
    assert Folder("https://host/x.jsonl?X-Amz-Signature=abc").name == "x.jsonl"
    assert Folder("sftp://me:w@rd@host/a").shown == "sftp://host/a"
    assert "word" not in repr(Folder("sftp://me:word@host/a/out/"))
    # In an object store these are names.
    assert Folder("s3://bucket/a#b/what?/").shown == "s3://bucket/a#b/what?"


def test_lines_behind_a_url_are_read_in_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"a line of some length {number}\n" for number in range(40_000)]
    Folder("memory://lines").write("tasks.txt", "".join(lines).encode())
    place = place_of("memory://lines/tasks.txt")
    assert isinstance(place, RemotePath)
    raw = place.open_raw()
    num_reads = 0
    read = raw.readinto

    def counted(buffer: bytearray) -> int | None:
        nonlocal num_reads
        num_reads += 1
        return read(buffer)

    monkeypatch.setattr(raw, "readinto", counted)
    monkeypatch.setattr(RemotePath, "open_raw", lambda _: raw)
    with io.TextIOWrapper(place.open("rb"), encoding="utf-8") as text:
        assert list(text) == lines
    assert num_reads <= 3
