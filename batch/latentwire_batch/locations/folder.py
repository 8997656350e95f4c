"""A folder at a URL or a path: files that appear whole or not at all.

The one way in which datasets, their parts and their records reach another place.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from latentwire_batch.errors import LocationError, storage_error
from latentwire_batch.locations.errors import (
    is_existing,
    is_missing,
    is_unsupported,
    location_errors,
    place_error,
)
from latentwire_batch.locations.filesystem import open_filesystem
from latentwire_batch.locations.hub_commits import commit_files
from latentwire_batch.locations.urls import below, shown, shown_name

# Errors of the disk to which a copy is written: reading raises none of them.
_OF_THE_WRITTEN_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})

# A file of one of these appears when its last byte has arrived. Elsewhere it is renamed.
_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "hf"})
# Of several processes that create one file here, one succeeds.
_EXCLUSIVE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
_HUB = frozenset({"hf"})
# Of the hub: the one kind of place there that keeps no history.
_HUB_BUCKETS = "buckets/"
# A write here says "no such file" when the bucket is missing.
_GOOGLE = frozenset({"gs", "gcs"})
_S3 = frozenset({"s3", "s3a"})
# Of one file, so many parts of so many bytes are in memory.
_PART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_PARTS_AT_A_TIME = 4


@dataclass(frozen=True)
class Folder:
    """A folder at a URL or a path. It need not exist: the first file makes it.

    A value that can be sent to another process. Every method raises LocationError when the place
    refuses or cannot be reached.

    Attributes:
        url: of the folder; a path stands for a local one.
    """

    url: str = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the file system again in another process."""
        return Folder, (self.url,)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        return open_filesystem(self.url)

    @property
    def filesystem(self) -> Any:
        """The `fsspec.AbstractFileSystem` of the folder."""
        return self._opened[0]

    @property
    def root(self) -> str:
        """The path of the folder in its file system."""
        return self._opened[1]

    @property
    def shown(self) -> str:
        """The URL for messages, without keys."""
        return shown(self.url)

    @property
    def name(self) -> str:
        """The last part of the URL, for messages."""
        return shown_name(self.url)

    @property
    def is_versioned(self) -> bool:
        """Whether every write is a commit that stays in the history."""
        return bool(self._protocols & _HUB) and not self.root.startswith(_HUB_BUCKETS)

    def below(self, name: str) -> Folder:
        """Return a folder in this one.

        Args:
            name: relative to this folder, with `/` between its parts.
        """
        return Folder(below(self.url, name))

    def path(self, name: str) -> str:
        """Return the path of a file in the file system.

        Args:
            name: relative to the folder, with `/` between its parts.
        """
        return f"{self.root}/{name}"

    def sizes(self) -> dict[str, int]:
        """List all files below the folder: bytes by name, in order; empty when there is none."""
        filesystem, root = self._opened
        prefix = filesystem._strip_protocol(root).rstrip("/") + "/"
        try:
            filesystem.invalidate_cache()
            found = filesystem.find(root, detail=True)
        except Exception as error:
            if is_missing(error):
                return {}
            raise place_error(error) from error
        files = {path.removeprefix(prefix): info["size"] for path, info in found.items()}
        # Some tools mark an empty folder by an object.
        return {name: files[name] for name in sorted(files) if name and not name.endswith("/")}

    def exists(self, name: str) -> bool:
        """Whether a file exists."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None when it does not exist."""
        try:
            self.filesystem.invalidate_cache()
            info = self.filesystem.info(self.path(name))
        except Exception as error:
            if is_missing(error):
                return None
            raise place_error(error) from error
        return info["size"] if info["type"] == "file" else None

    def checksum(self, name: str) -> str:
        """Return what changes whenever the content of a file changes; see `fsspec`."""
        with location_errors():
            self.filesystem.invalidate_cache()
            return f"{self.filesystem.checksum(self.path(name)):x}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None when it does not exist."""
        try:
            return bytes(self.filesystem.cat_file(self.path(name)))
        except Exception as error:
            if is_missing(error):
                return None
            raise place_error(error) from error

    def read_part(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of a file from one place to another, by one request."""
        with location_errors():
            return bytes(self.filesystem.cat_file(self.path(name), start=start, end=stop))

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; reading raises the errors of its library."""
        with location_errors():
            file: IO[bytes] = self.filesystem.open(self.path(name), "rb")
            return file

    def fetch(self, name: str, local: Path) -> None:
        """Copy a file to this machine; its folder is made.

        Raises:
            DiskError: when this machine's disk is full, or cannot be written to.
        """
        with location_errors():
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                self.filesystem.get_file(self.path(name), str(local), **self._get_options())
            except OSError as error:
                if error.errno in _OF_THE_WRITTEN_DISK:
                    raise storage_error("cannot be written", error) from error
                raise

    def put(self, name: str, local: Path) -> None:
        """Copy a local file to the folder, whole or not at all; a file of that name is replaced.

        Large files go in parts, a few of them at a time.
        """
        size = local.stat().st_size
        with self._write_errors():
            self._place(
                name,
                lambda path: self.filesystem.put_file(str(local), path, **self._put_options(size)),
            )
            if self.size(name) != size:
                raise OSError("a file has another size after it was sent")

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all; a file of that name is replaced."""
        with self._write_errors():
            self._place(name, lambda path: self.filesystem.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file, whole or not at all, unless there is one of that name.

        Where the store can decide it (S3, Google Cloud Storage, Azure, directories), one of several
        processes succeeds. Elsewhere the last one may replace what an earlier one has written.

        Returns:
            Whether the file was written.
        """
        with self._write_errors():
            if "file" in self._protocols:
                return _link(self.path(name), data)
            if self._protocols & _EXCLUSIVE:
                try:
                    self.filesystem.pipe_file(self.path(name), data, mode="create")
                except Exception as error:
                    if is_existing(error):
                        return False
                    if not is_unsupported(error):
                        raise
                else:
                    return True
        if self.exists(name):
            return False
        self.write(name, data)
        return True

    def commit(self, added: Mapping[str, Path], removed: Iterable[str]) -> None:
        """Change a versioned folder by one commit, of which readers see all or nothing.

        Args:
            added: local files by their names; files of the same names are replaced.
            removed: names of files that exist.
        """
        with self._write_errors():
            place = self.filesystem.resolve_path(self.root)
            inside = f"{place.path_in_repo}/" if place.path_in_repo else ""
            commit_files(
                place.repo_id,
                {f"{inside}{name}": path for name, path in added.items()},
                [f"{inside}{name}" for name in removed],
                repo_type=place.repo_type,
                revision=place.revision,
            )
            self.filesystem.invalidate_cache()

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that does not exist is left out."""
        if self.is_versioned:
            # The hub refuses to remove what is missing.
            found = sorted(set(names) & self.sizes().keys())
            if found:
                self.commit({}, found)
            return
        for name in names:
            try:
                self.filesystem.rm_file(self.path(name))
            except Exception as error:
                if not is_missing(error):
                    raise place_error(error) from error
        self.filesystem.invalidate_cache()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            with location_errors():
                yield
        except LocationError as error:
            if self._protocols & _GOOGLE and isinstance(error.__cause__, FileNotFoundError):
                raise LocationError("the bucket does not exist", True) from error
            raise

    def _place(self, name: str, send: Any) -> None:
        filesystem, target = self.filesystem, self.path(name)
        if self._protocols & _WHOLE:
            send(target)
            return
        parent, _, base = target.rpartition("/")
        filesystem.makedirs(parent, exist_ok=True)
        # Hidden, so that no reader takes it for a file of the dataset.
        temporary = f"{parent}/.{base}.{secrets.token_hex(4)}.tmp"
        try:
            send(temporary)
            if "file" in self._protocols:
                _sync(temporary)
                os.replace(temporary, target)
                _sync(parent)
            else:
                if filesystem.exists(target):
                    filesystem.rm_file(target)
                filesystem.mv(temporary, target)
        except BaseException:
            if filesystem.exists(temporary):
                filesystem.rm_file(temporary)
            raise

    @property
    def _protocols(self) -> set[str]:
        protocol = self.filesystem.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def _put_options(self, size: int) -> dict[str, int]:
        if not self._protocols & _S3:
            return {}
        part_bytes = max(_PART_BYTES, -(-size // _MAX_PARTS))
        return {"chunksize": part_bytes, "max_concurrency": _PARTS_AT_A_TIME}

    def _get_options(self) -> dict[str, int]:
        if not self._protocols & _S3:
            return {}
        return {"chunksize": _PART_BYTES, "max_concurrency": _PARTS_AT_A_TIME}


def _link(path: str, data: bytes) -> bool:
    """Write a file of this machine under a name that is free; whether it was."""
    parent, _, base = path.rpartition("/")
    os.makedirs(parent, exist_ok=True)
    temporary = f"{parent}/.{base}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync(parent)
    return True


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
