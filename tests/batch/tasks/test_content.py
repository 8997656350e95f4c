"""Every kind of file that people pass as a dataset: read, or refused by what it is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import Row, RowFields

FIELDS = RowFields(task_field="task", conversations_index=None, id_field="id")
RECORDS = [{"id": f"t{i}", "task": f"Täsk {i}"} for i in range(300)]
ROWS = [Row(i, record["id"], record["task"]) for i, record in enumerate(RECORDS)]
LINES = "\n".join(map(json.dumps, RECORDS)).encode()
LIST = json.dumps(RECORDS, indent=1, ensure_ascii=False).encode()
TABLE = pa.Table.from_pylist(RECORDS)


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(content)
        return bytes(sink.getvalue())

    return compress


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "zstd": arrow("zstd"),
    "lz4": arrow("lz4"),
    "zip": lambda content: archive({"tasks": content}),
    "zip of macOS": lambda content: archive({"tasks": content, "__MACOSX/._tasks": b"x"}),
    "two gzip members": lambda content: gzip.compress(content[:50]) + gzip.compress(content[50:]),
}


def read(path: Path, fields: RowFields = FIELDS) -> list[Row]:
    return list(TaskSource(path, fields).rows())


@pytest.mark.parametrize("content", [LINES, LIST], ids=["lines", "list"])
@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.gz", "tasks"])
def test_compressed_text_is_read_under_any_name(
    compress: Callable[[bytes], bytes], content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(compress(content))
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_compressed_data_that_is_cut_off_is_refused(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole = compress(LINES)
    for length in (len(whole) // 2, len(whole) - 5, 7):
        (tmp_path / "tasks").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged or cut off") as caught:
            read(tmp_path / "tasks")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_are_read(kind: str, tmp_path: Path) -> None:
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(tmp_path / "tasks"), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=70)
    assert read(tmp_path / "tasks") == ROWS


def table_bytes(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        member = tarfile.TarInfo("tasks.jsonl")
        member.size = len(LINES)
        file.addfile(member, io.BytesIO(LINES))
    return buffer.getvalue()


def database(tmp_path: Path) -> bytes:
    path = tmp_path / "made.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table tasks (task text)")
    connection.close()
    return path.read_bytes()


def parquet_bytes() -> bytes:
    return table_bytes(lambda buffer: pq.write_table(TABLE, buffer))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED: list[tuple[str, bytes | Callable[[Path], bytes], str]] = [
    ("empty", b"", "is empty"),
    ("white space", b"\n \n\t\n", "is empty"),
    ("empty gzip", gzip.compress(b""), "holds no data"),
    ("NUL bytes", b"\0" * 5000, "is binary data of NUL bytes alone"),
    ("NUL bytes behind lines", LINES + b"\n" + b"\0" * 5000, "line 301 consists of NUL bytes"),
    (
        "a NUL byte in a line",
        b'{"task": "a\0b"}',
        r"line 1 is not JSON \(Invalid control character at",
    ),
    (
        "UTF-32 without a mark",
        LINES.decode().encode("utf-32-le"),
        "UTF-32 text; convert it to UTF-8",
    ),
    (
        "an object with a list",
        json.dumps({"version": 1, "data": RECORDS[:3]}, indent=1).encode(),
        "is one JSON object, whose field 'data' holds a list; pass that list by itself",
    ),
    (
        "an object with a list on one line",
        json.dumps({"version": 1, "data": RECORDS[:3]}).encode(),
        "the row has 'version', 'data'; .*field 'data' holds a list: to plan its objects, pass",
    ),
    (
        "objects over several lines",
        "\n".join(json.dumps(record, indent=2) for record in RECORDS).encode(),
        "is JSON whose objects span several lines.*; write one object per line, or one list",
    ),
    (
        "conversations over several lines",
        json.dumps({"messages": [{"role": "user"}]}, indent=2).encode(),
        "is JSON whose objects span several lines",
    ),
    ("columns", b'{"id": [1, 2], "task": ["a", "b"]}', "field 'task' is not text but list"),
    ("CSV", b"id,task\n1,Clean\n", "comma-separated"),
    ("CSV with quotes", b'"id","task"\n"1","Clean, dry"\n', "comma-separated"),
    ("CSV with semicolons", b"id;task\n1;Clean\n", "comma-separated"),
    ("CSV with a mark", b"\xef\xbb\xbfid,task\n1,Clean\n", "comma-separated"),
    ("TSV", b"id\ttask\n1\tClean\n", "tab-separated"),
    ("HTML", b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML page"),
    ("HTML after blanks", b"\n\n<html lang='en'>", "HTML page"),
    ("XML", b'<?xml version="1.0"?><tasks/>', "is XML"),
    ("YAML", b"- task: Clean\n", "is YAML"),
    ("YAML with marks", b"---\ntask: Clean\n", "is YAML"),
    ("plain text", b"Clean the window.\nWater the plants.\n", "plain text, not JSON"),
    ("Git LFS pointer", POINTER, "Git LFS pointer.*git lfs pull"),
    ("UTF-16", LINES.decode().encode("utf-16"), "UTF-16"),
    ("UTF-16 without a mark", LINES.decode().encode("utf-16-le"), "UTF-16"),
    ("UTF-16 of the other order", LIST.decode().encode("utf-16-be"), "UTF-16"),
    ("UTF-32", LINES.decode().encode("utf-32"), "UTF-32"),
    ("Latin-1", '{"task": "Täsk"}'.encode("latin-1"), "line 1 .*0xe4 is not UTF-8"),
    (
        "pickle",
        b"\x80\x04\x95\x11\x00\x00\x00\x00\x00\x00\x00]\x94}\x94\x8c\x04task\x94\x8c\x01a\x94sa.",
        "Python pickle",
    ),
    ("Excel", archive({"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "Excel workbook"),
    ("Word", archive({"[Content_Types].xml": b"", "word/document.xml": b""}), "is a document"),
    ("PyTorch", archive({"archive/data.pkl": b""}), "PyTorch"),
    ("npz", archive({"tasks.npy": b""}), "NumPy arrays"),
    ("zip of two", archive({"a": LINES, "b": LINES}), r"2 files \(a, b\)"),
    ("zip of none", archive({}), "no file"),
    ("npy", table_bytes(lambda buffer: np.save(buffer, np.arange(3))), "NumPy array"),
    ("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    ("SQLite", database, "SQLite"),
    ("ORC", table_bytes(lambda buffer: pa.orc.write_table(TABLE, buffer)), "ORC"),
    ("PDF", b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    ("image", b"\x89PNG\r\n\x1a\n\0\0", "image"),
    ("GGUF", b"GGUF\3\0\0\0", "GGUF model"),
    ("safetensors", (40).to_bytes(8, "little") + b'{"weight": {}}'.ljust(40), "safetensors"),
    ("encrypted Parquet", b"PARE" + bytes(50), "encrypted Parquet"),
    ("zeros", bytes(8192), "binary data"),
    ("random bytes", bytes(range(256)) * 20, "binary data"),
    ("tar", tar_bytes(), "tar archive"),
    ("tar.gz", gzip.compress(tar_bytes()), "tar archive"),
    ("CSV in gzip", gzip.compress(b"id,task\n1,Clean\n"), "comma-separated"),
    ("gzip in gzip", gzip.compress(gzip.compress(LINES)), "gzip data inside"),
    ("Parquet in gzip", gzip.compress(parquet_bytes()), "gzip-compressed Parquet"),
    ("Parquet cut off", parquet_bytes()[:-20], "cannot be decoded"),
    ("object over several lines", json.dumps(RECORDS[0], indent=1).encode(), "line 1 is not JSON"),
]


@pytest.mark.parametrize(
    ("content", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks"])
def test_a_refusal_of_another_format_names_the_format(
    content: bytes | Callable[[Path], bytes], message: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tasks")
    with pytest.raises(InputError, match="is a pipe"):
        read(tmp_path / "tasks")


@pytest.mark.parametrize(
    "line",
    ["3", '"id,task"', "null", "true", "[1, 2]"],
    ids=["number", "text", "null", "true", "list"],
)
def test_json_without_fields_is_refused_by_its_row(line: str, tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text(f'{{"task": "fine"}}\n{line}\n')
    with pytest.raises(InputError, match="row 1: not an object with fields"):
        read(tmp_path / "tasks")
    (tmp_path / "tasks").write_text(f"{line}\n")
    with pytest.raises(InputError, match="row 0: not an object with fields"):
        read(tmp_path / "tasks")
