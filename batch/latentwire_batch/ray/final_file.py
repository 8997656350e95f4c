"""One final file of the hub layout, written whole on any node. Imports no Ray."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from latentwire_batch.assembly import RowBatches, Totals
from latentwire_batch.dataset.file_digests import FileDigest
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.dataset.writers import ParquetSink
from latentwire_batch.errors import StorageError, UsageError, storage_error
from latentwire_batch.journal.segments.reading import read_rows
from latentwire_batch.journal.segments.row_index import RowIndex
from latentwire_batch.locations import Folder
from latentwire_batch.output.durable import sync_directory

# Where Linux has the open files of a process.
_OPEN_FILES = Path("/proc/self/fd")


@dataclass(frozen=True)
class FinalForm:
    """What the files of one dataset have in common.

    Attributes:
        schema: of the files.
        width: hidden size of the model.
        max_bytes: maximum bytes of rows in one file, before compression.
    """

    schema: DatasetSchema
    width: int
    max_bytes: int


@dataclass(frozen=True, eq=False)
class FinalFile:
    """A file that is to be written.

    Attributes:
        name: relative to the output.
        rows: where its rows are, in order.
        form: of the file.
        target: directory that all nodes share, or folder behind a URL.
    """

    name: str
    rows: RowIndex
    form: FinalForm
    target: Path | Folder

    @cached_property
    def key(self) -> str:
        """Changes when other rows, or other columns, are to be in the file."""
        rows = self.rows
        digest = hashlib.sha256(self.form.schema.arrow.serialize())
        for file in rows.files:
            digest.update(file.name.encode() + b"\0")
        for array in (rows.rows, rows.file_numbers, rows.offsets, rows.lengths):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class WrittenFile:
    """A file that is whole.

    Attributes:
        name: relative to the output.
        digest: of its content, for the manifest.
        totals: of its rows.
        checksum: of the file in its folder, see `Folder.checksum`; empty in a directory, and until
            the driver has looked.
    """

    name: str
    digest: FileDigest
    totals: Totals
    checksum: str = ""


def write_final_file(file: FinalFile) -> WrittenFile:
    """Write a file under a temporary name, then give it its own; the same again after a loss.

    Raises:
        UsageError: when this node does not see the directory.
        StorageError: when rows cannot be read, or the file cannot be written.
    """
    try:
        if isinstance(file.target, Folder):
            return _put(file, file.target)
        return _place(file, file.target)
    except OSError as error:
        said = storage_error("cannot be written", error)
        if isinstance(file.target, Folder):
            # Not the driver's directory: a temporary file of this node.
            raise StorageError(str(said)) from error
        raise said from error


def _put(file: FinalFile, folder: Folder) -> WrittenFile:
    with _scratch_file() as path:
        digest, totals = _write(file, path)
        folder.put(file.name, path)
        return WrittenFile(file.name, digest, totals)


@contextmanager
def _scratch_file() -> Iterator[Path]:
    """Make a file in the temporary directory; where the system can, a kill leaves nothing of it."""
    if _OPEN_FILES.is_dir():
        # It has no other name, so it ends with the process.
        with tempfile.TemporaryFile() as file:
            yield _OPEN_FILES / str(file.fileno())
        return
    with tempfile.TemporaryDirectory(prefix="latentwire-") as directory:
        yield Path(directory) / "file"


def _place(file: FinalFile, directory: Path) -> WrittenFile:
    path = directory / file.name
    if not path.parent.is_dir():
        raise UsageError(
            f"--output-dir: node {socket.gethostname()} of the Ray cluster does not see it; give a "
            "folder that all nodes share, or the URL of a store"
        )
    # A task that Ray took for lost may still write its own.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        digest, totals = _write(file, temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return WrittenFile(file.name, digest, totals)


def _write(file: FinalFile, path: Path) -> tuple[FileDigest, Totals]:
    form, totals = file.form, Totals()
    sink = ParquetSink(path, form.schema)
    with RowBatches([sink], form.schema, form.width, form.max_bytes) as batches:
        for row in read_rows(file.rows):
            batches.add_stored(row.stored, row.read_into, totals)
        batches.close()
    return sink.files[path], totals
