"""Tasks behind `http://` and `https://`: servers of all habits are read, their faults named."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.inspection.command import main as inspect
from latentwire_batch.locations import Folder, RemotePath, place_of, web
from latentwire_batch.locations.errors import place_error
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica
from support.stores.file_server import FileServer, ServedFile

FIELDS = RowFields("task", None, "id")
# More than is read at a time, so that a second part is requested.
ROWS = [{"id": f"t{i}", "task": f"{i:05d} " + "clean the window " * 1000} for i in range(300)]
SECRET = "s3cret"


def _parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=100)
    return bytes(sink.getvalue())


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FORMATS = {"jsonl": LINES, "gzip": gzip.compress(LINES, 1), "parquet": _parquet()}
SERVERS: dict[str, Callable[[bytes], ServedFile]] = {
    "parts": ServedFile,
    "no parts": lambda data: ServedFile(data, serves_parts=False),
    "no size": lambda data: ServedFile(data, states_size=False),
    "neither": lambda data: ServedFile(data, serves_parts=False, states_size=False),
    # Every answer has another address, signed for it alone.
    "moved": lambda data: ServedFile(data, is_moved=True),
}
BROKEN = "the connection broke before all bytes had arrived"
FAULTS: dict[str, tuple[ServedFile, str]] = {
    "cut part": (ServedFile(LINES, part_sent=5000), BROKEN),
    "cut off": (ServedFile(LINES, num_sent=5000, serves_parts=False), BROKEN),
    "cut off without a size": (
        ServedFile(LINES, num_sent=5000, serves_parts=False, states_size=False),
        BROKEN,
    ),
    "cut part of parquet": (ServedFile(FORMATS["parquet"], part_sent=5000), BROKEN),
    "cut off gzip": (ServedFile(FORMATS["gzip"], part_sent=5000), BROKEN),
    "401": (ServedFile(b"", status=401), "access is denied"),
    "403": (ServedFile(b"", status=403), "access is denied"),
    "429": (ServedFile(b"", status=429), "there were too many requests"),
    "500": (ServedFile(b"", status=500), "the store answered with status 500"),
}
PORT = "must name a port from 1 to 65535 behind the host"
NOT_VALID = "the URL, or a setting of its library, is not valid"
SLASHES = "a URL has two slashes after its scheme, like s3://bucket/file"
# `user:s3cret@` and the query must not be in a message.
MALFORMED = {
    "http://": "cannot be read: names no host between http:// and the next /",
    "https:///x?s3cret": "cannot be read: names no host between https:// and the next /",
    "http://user:s3cret@/x": "cannot be read: names no host between http:// and the next /",
    "http://host:99999/x?s3cret": f"cannot be read: {PORT}",
    "http://user:s3cret@host:abc/x": f"cannot be read: {PORT}",
    "http://host:0/x": f"cannot be read: {PORT}",
    "http://[::1/x?s3cret": "cannot be read: is not a valid URL",
    "http://a..b/x?s3cret": f"cannot be read: {NOT_VALID}",
    "http://127.0.0.1:1/x?s3cret": "cannot be read: the store cannot be reached",
    "foo://bar/x?s3cret": "cannot be read: no package for URLs that begin with foo://",
    "http:/host/x?s3cret": SLASHES,
    "s3:/bucket/s3cret": SLASHES,
}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        yield server


@pytest.mark.parametrize("habits", SERVERS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_read_whatever_its_server_is_capable_of(
    server: FileServer, habits: str, form: str
) -> None:
    file = server.files["/tasks"] = SERVERS[habits](FORMATS[form])
    source = TaskSource(place_of(f"{server.url}/tasks"), FIELDS)
    for _ in range(2):
        # The input is read twice.
        assert [row.task for row in source.rows()] == [row["task"] for row in ROWS]
    if not file.serves_parts and file.states_size:
        # One request finds out, and one takes all.
        assert file.requests["GET"] == 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_server_that_fails_is_named_in_words(server: FileServer, name: str) -> None:
    fault, reason = FAULTS[name]
    server.files["/tasks"] = replace(fault)
    with pytest.raises(InputError, match=f"^cannot be read: {reason}$"):
        list(TaskSource(place_of(f"{server.url}/tasks"), FIELDS).rows())


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_leads_nowhere_is_refused_by_its_fault(collect: Collect, url: str) -> None:
    ended = collect("--dataset", url)
    assert ended.status == 2
    assert f"--dataset: {MALFORMED[url]}\n" in ended.stderr
    assert SECRET not in ended.stderr


def test_a_query_stays_with_the_files_and_out_of_messages_and_outputs(
    server: FileServer, collect: Collect, stub: StubReplica, output: Path
) -> None:
    query = f"token={SECRET}/x"
    server.files["/in/tasks.jsonl"] = ServedFile(LINES, query=query)
    url = f"{server.url}/in/tasks.jsonl"
    ended = collect("--dataset", f"{url}?{query}", "--limit", "3", replicas=[stub])
    assert ended.status == 0, ended.stderr
    assert not server.unknown
    assert SECRET not in ended.stderr
    written = b"".join(file.read_bytes() for file in output.rglob("*") if file.is_file())
    assert SECRET.encode() not in written
    ended = collect("--dataset", f"{url}?token=other-{SECRET}")
    assert "--dataset: no such file or folder" in ended.stderr
    assert SECRET not in ended.stderr


def test_names_stand_in_front_of_a_query() -> None:
    path = RemotePath("https://host/out/data.parquet?sig=a/b#c")
    assert path.name == "data.parquet"
    assert (path.parent / "manifest.json").url == "https://host/out/manifest.json?sig=a/b#c"
    assert path.relative_to(path.parent.parent).as_posix() == "out/data.parquet"
    assert Folder("abfs://c@account/x?sig=a").below("y").url == "abfs://c@account/x/y?sig=a"
    # A bucket may hold such names.
    assert (RemotePath("s3://bucket/a?b") / "c").url == "s3://bucket/a?b/c"


def test_a_stored_dataset_is_inspected_behind_a_query(
    server: FileServer, collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--limit", "3", replicas=[stub]).status == 0
    query = f"sig={SECRET}"
    for name in ("data.parquet", "manifest.json"):
        server.files[f"/out/{name}"] = ServedFile((output / name).read_bytes(), query=query)
    assert inspect([f"{server.url}/out/data.parquet?{query}", "--verify"]) == 0


def test_a_time_out_is_of_silence_and_not_of_the_whole(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_READ_TIMEOUT_S", 0.2)
    silence = threading.Event()
    server.files["/tasks"] = ServedFile(LINES, serves_parts=False, silence=silence)
    place = place_of(f"{server.url}/tasks")
    assert isinstance(place, RemotePath)
    with pytest.raises(InputError, match="^cannot be read: the store does not answer in time$"):
        list(TaskSource(place, FIELDS).rows())
    silence.set()
    timeout = place.filesystem._session.timeout
    assert (timeout.total, timeout.sock_read) == (None, 0.2)


def test_what_the_user_has_configured_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"headers": {"X-Mine": "1"}, "trust_env": True, "timeout": None}
    monkeypatch.setitem(fsspec.config.conf, "https", {"client_kwargs": given})
    kwargs = Folder("https://host/x").filesystem.client_kwargs
    assert kwargs == {**given, "headers": {"Accept-Encoding": "identity", "X-Mine": "1"}}


def test_a_copy_that_finds_no_room_says_so(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(28, os.strerror(28))

    server.files["/tasks"] = ServedFile(LINES, serves_parts=False)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    reason = "cannot be copied to a temporary file: No space left on device$"
    with pytest.raises(InputError, match=reason):
        list(TaskSource(place_of(f"{server.url}/tasks"), FIELDS).rows())


def test_a_file_that_ends_before_its_size_is_not_taken_for_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/in/tasks", LINES)
    kind = type(memory.open("/in/tasks"))
    monkeypatch.setattr(kind, "size", len(LINES) + 1)
    with pytest.raises(InputError, match=BROKEN):
        list(TaskSource(place_of("memory://in/tasks"), FIELDS).rows())


def test_other_mistakes_than_an_unknown_scheme_are_no_missing_package() -> None:
    assert place_error(ValueError("Invalid endpoint: s3cret")).reason == NOT_VALID
