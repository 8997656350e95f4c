"""The rows of shards, in input order, as they are stored.

Each shard has one file open at a time. A file behind a URL is copied to this machine first, and
its copy is removed when its rows are read. Every file is compared with the manifest's digest.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentwire_batch.dataset.file_digests import (
    content_problem,
    digest_of_file,
    size_problems,
    stated_files,
)
from latentwire_batch.dataset.files import DatasetFiles, DatasetPart, locate
from latentwire_batch.dataset.previous import checked_rows
from latentwire_batch.dataset.reader import EncodedRow
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.errors import DiskError, InputError, LocationError, StorageError, reason_of
from latentwire_batch.locations import Folder, Place, RemotePath, relative_name
from latentwire_batch.output.layout import FAILURES_NAME, HF_DATASET_NAME
from latentwire_batch.shards.finished import FinishedShard
from latentwire_batch.tasks.results import FailedRow

# Besides the shards' files: libraries, the output, the terminal.
_OTHER_FILES = 256
# Decoded together, over all shards: a row may take some MiB.
_MAX_DECODED_ROWS = 64
_MAX_ROWS_OF_FILE = 16
_REMEDY = "copy the shard again, or collect it again with --overwrite"


def row_files(shard: FinishedShard) -> DatasetFiles:
    """Find the files of a shard's rows.

    Arrow files, where there are some: they are read without decoding, and none is larger than
    `--max-shard-size`.

    Raises:
        StorageError: when there are none.
    """
    saved = shard.folder / HF_DATASET_NAME
    try:
        return locate(saved if saved.exists() else shard.folder)
    except (InputError, LocationError) as error:
        reason = f"cannot be read: {error.reason}" if isinstance(error, LocationError) else error
        raise StorageError(f"shard {shard.shard}: its dataset {reason}") from error


class ShardRows:
    """Reads the rows and failures of one shard.

    Args:
        shard: to read.
        copies: directory of this machine for the copies of files that are behind a URL.
        max_rows: that are decoded together.
    """

    def __init__(self, shard: FinishedShard, copies: Path, max_rows: int) -> None:
        self._shard = shard
        self._copies = copies / shard.shard.folder
        self._max_rows = max_rows
        with shard.reading_manifest():
            self._stated = stated_files(shard.said)

    def check(self) -> None:
        """Compare the names and sizes of the files with those that the manifest states.

        Raises:
            StorageError: naming the shard and the file.
        """
        if not self._stated:
            # Of a version that stated none.
            return
        read = {relative_name(file, self._shard.folder) for file in self._files()}
        with self._reading("its files"):
            sizes = self._sizes()
        for name in sorted(read - self._stated.keys()):
            raise self._error(f"{name} is not one of the files that its manifest.json names")
        # The other form of the rows may have been removed, but must not be that of other rows.
        stated = {
            name: digest
            for name, digest in self._stated.items()
            if name in sizes or name in read or name == FAILURES_NAME
        }
        for problem in size_problems(stated, sizes):
            raise self._error(problem)

    def rows(self, schema: DatasetSchema) -> Iterator[EncodedRow]:
        """Yield the finished rows in order.

        Args:
            schema: of the dataset.

        Raises:
            StorageError: when a file cannot be read, or is not the one that was written.
            InputError: when the place behind a URL refuses.
        """
        for file in self._files():
            name = relative_name(file, self._shard.folder)
            with self._local(name, file) as path:
                self._compare(name, path)
                files = DatasetFiles(self._shard.folder, (DatasetPart(path),))
                try:
                    yield from checked_rows(files, schema.matrices, schema.extras, self._max_rows)
                except InputError as error:
                    raise self._error(f"{name} {error}") from error

    def failed_rows(self) -> Iterator[FailedRow]:
        """Yield the rows that failed.

        Raises:
            StorageError: when the list is damaged, or does not fit the manifest.
            InputError: when the place behind a URL refuses.
        """
        shard, manifest = self._shard.shard, self._shard.manifest
        num_failed, num_rows = manifest.counts.failed, manifest.settings.data.num_rows
        if not num_failed:
            return
        path, seen = self._shard.folder / FAILURES_NAME, set()
        self._compare(FAILURES_NAME, path)
        with self._reading(FAILURES_NAME), path.open("rb") as file:
            for line in file:
                try:
                    row = _failed_row(line)
                    is_own = 0 <= row.index < num_rows and shard.holds(row.index)
                except (ValueError, LookupError, TypeError) as error:
                    raise self._error(f"{FAILURES_NAME} is damaged") from error
                if not is_own:
                    raise self._error(f"{FAILURES_NAME} lists a row of another shard")
                seen.add(row.index)
                yield row
        if len(seen) != num_failed:
            raise self._error(f"{FAILURES_NAME} lists {len(seen)} rows, but {num_failed} failed")

    def _files(self) -> list[Place]:
        try:
            with self._reading("its files"):
                return row_files(self._shard).all_row_files()
        except InputError as error:
            raise self._error(f"its dataset {error}") from error

    def _sizes(self) -> dict[str, int]:
        folder = self._shard.folder
        if isinstance(folder, RemotePath):
            return Folder(folder.url).sizes()
        paths = ((name, folder / name) for name in self._stated)
        return {name: path.stat().st_size for name, path in paths if path.is_file()}

    @contextmanager
    def _local(self, name: str, file: Place) -> Iterator[Path]:
        """Give a file on this machine."""
        if isinstance(file, Path):
            yield file
            return
        assert isinstance(self._shard.folder, RemotePath)
        copy = self._copies / name
        try:
            with self._reading(name):
                Folder(self._shard.folder.url).fetch(name, copy)
            yield copy
        finally:
            shutil.rmtree(self._copies, ignore_errors=True)

    def _compare(self, name: str, path: Place) -> None:
        stated = self._stated.get(name)
        if stated is None:
            return
        with self._reading(name):
            problem = content_problem(name, stated, digest_of_file(path))
        if problem is not None:
            raise self._error(problem)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = f"shard {self._shard.shard}: {name} cannot be read: {reason_of(error)}"
            is_users = isinstance(error, LocationError) and error.is_users
            raise (InputError if is_users else StorageError)(text) from error

    def _error(self, problem: str) -> StorageError:
        return StorageError(f"shard {self._shard.shard}: {problem}; {_REMEDY}")


def _failed_row(line: bytes) -> FailedRow:
    said = json.loads(line)
    return FailedRow(int(said["row"]), said["task_id"], said["code"], said["message"])


def shard_rows(shards: Sequence[FinishedShard], copies: Path) -> list[ShardRows]:
    """Return a reader for each shard; see `ShardRows`."""
    max_rows = max(1, min(_MAX_ROWS_OF_FILE, _MAX_DECODED_ROWS // len(shards)))
    return [ShardRows(shard, copies, max_rows) for shard in shards]


def interleaved(
    shards: Sequence[FinishedShard],
    readers: Sequence[ShardRows],
    schema: DatasetSchema,
    failed: npt.NDArray[np.bool_],
    advance: Callable[[], None],
) -> Iterator[EncodedRow]:
    """Yield the rows of all shards in input order, as they are stored.

    Args:
        shards: of one collection, in order.
        readers: of the shards.
        schema: of the dataset.
        failed: `[num_rows]` bool, whether a row of the input failed.
        advance: called for every row.

    Raises:
        StorageError: when a shard cannot be read, or holds another number of rows.
        InputError: when the place behind a URL refuses.
    """
    _allow_open_files(len(shards))
    rows = [reader.rows(schema) for reader in readers]
    for index in np.flatnonzero(~failed):
        number = int(index) % len(shards)
        row = _next(shards[number], rows[number])
        if row is None:
            raise StorageError(f"shard {shards[number].shard}: holds fewer rows than it says")
        advance()
        yield row
    for shard, left in zip(shards, rows, strict=True):
        if _next(shard, left) is not None:
            raise StorageError(f"shard {shard.shard}: holds more rows than it says")


def _next(shard: FinishedShard, rows: Iterator[EncodedRow]) -> EncodedRow | None:
    try:
        return next(rows, None)
    except DiskError:
        # A copy cannot be written, so the shard is not to blame.
        raise
    except StorageError as error:
        begin = f"shard {shard.shard}: "
        text = str(error)
        raise StorageError(text if text.startswith(begin) else begin + text) from error


def _allow_open_files(num_shards: int) -> None:
    """Raise this process's limit: each shard has a file open, and systems often allow 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_shards + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
