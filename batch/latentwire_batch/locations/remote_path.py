"""A file or folder behind a URL, read in the way in which `pathlib` reads local ones.

Readers take a `Place`, and most of them need not know which of the two it is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from latentwire_batch.errors import LocationError
from latentwire_batch.locations import web
from latentwire_batch.locations.errors import CUT_OFF, is_missing, location_errors, place_error
from latentwire_batch.locations.filesystem import open_filesystem
from latentwire_batch.locations.urls import (
    below,
    is_read_only,
    is_strange,
    lacks_slash,
    local_path,
    parent_of,
    scheme_of,
    shown,
    shown_name,
    split_query,
)

# Read ahead in a file that is read from its start to its end.
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Stat:
    """Attributes of a file, named as those of `os.stat`.

    Attributes:
        st_size: in bytes.
    """

    st_size: int


class RemotePath:
    """A file or folder behind a URL. What it reads raises LocationError, which is an OSError.

    Args:
        url: its library finds keys and the like in the environment.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: tuple[Any, str] | None = None
        self._pid = os.getpid()
        self._version: str | None = None
        # Of a file whose server does not serve parts of it.
        self._copy: web.TemporaryCopy | None = None
        self._is_served_in_parts = False

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Let settings hold one."""
        return core_schema.is_instance_schema(cls)

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the file system again in another process."""
        return RemotePath, (self.url,)

    def __str__(self) -> str:
        """Return the URL for messages, without keys."""
        return shown(self.url)

    def __repr__(self) -> str:
        """Return the URL for messages, without keys."""
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        """Whether another place has the same URL."""
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        """Hash the URL."""
        return hash(self.url)

    def __truediv__(self, name: str) -> RemotePath:
        """Return a place in this folder."""
        return RemotePath(below(self.url, name))

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return shown_name(self.url)

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return RemotePath(parent_of(self.url))

    @property
    def filesystem(self) -> Any:
        """The `fsspec.AbstractFileSystem` of the URL."""
        return self._located()[0]

    @property
    def path(self) -> str:
        """The path in the file system."""
        return self._located()[1]

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether it is a file."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def stat(self) -> Stat:
        """Return the size; raises FileNotFoundError."""
        info = self._info()
        if info is None:
            raise FileNotFoundError(2, "No such file or directory")
        return Stat(info["size"] or 0)

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open the file, to be read from its start to its end; raises FileNotFoundError.

        Args:
            mode: the only one; `pathlib` has others.

        Raises:
            LocationError: also when the file is no longer what it was when it was opened first.
        """
        assert mode == "rb"
        return _ReadAhead(self.open_raw(), _BLOCK_BYTES)

    def open_raw(self) -> io.RawIOBase:
        """Open the file for reading parts of it: every read is one request; raises like `open`."""
        filesystem, path = self._located()
        try:
            filesystem.invalidate_cache()
            if scheme_of(self.url) in web.SCHEMES:
                return self._open_web_file(filesystem, path)
            self._refuse_change(str(filesystem.checksum(path)))
            return _RawFile(filesystem.open(path, "rb", cache_type="none"))
        except Exception as error:
            if is_missing(error):
                raise FileNotFoundError(2, "No such file or directory") from error
            if isinstance(error, LocationError):
                raise
            raise place_error(error) from error

    def read_bytes(self) -> bytes:
        """Return the content; raises FileNotFoundError."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content as text; raises FileNotFoundError."""
        return self.read_bytes().decode(encoding)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders in this folder, sorted by name."""
        filesystem, path = self._located()
        try:
            filesystem.invalidate_cache()
            found = filesystem.ls(path, detail=False)
        except Exception as error:
            if is_missing(error):
                return
            raise place_error(error) from error
        names = sorted({PurePosixPath(entry.rstrip("/")).name for entry in found})
        # Some tools mark a folder by an object of its own name.
        yield from (self / name for name in names if name != PurePosixPath(path).name)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the files and folders in this folder whose names match a pattern."""
        return (place for place in self.iterdir() if fnmatchcase(place.name, pattern))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield all files below this folder whose names match a pattern."""
        filesystem, path = self._located()
        with location_errors():
            filesystem.invalidate_cache()
            found = filesystem.find(path)
        prefix = f"{filesystem._strip_protocol(path).rstrip('/')}/"
        for name in sorted(entry.removeprefix(prefix) for entry in found):
            if fnmatchcase(PurePosixPath(name).name, pattern):
                yield self / name

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """Return the names that lead from a folder to this place."""
        own, folder = split_query(self.url)[0], split_query(other.url)[0]
        return PurePosixPath(own.removeprefix(folder.rstrip("/")).lstrip("/"))

    def resolve(self) -> RemotePath:
        """Return the place itself: it has no links."""
        return self

    def _located(self) -> tuple[Any, str]:
        # A file system of another process must not be used after a fork.
        if self._opened is None or self._pid != os.getpid():
            self._opened, self._pid = open_filesystem(self.url), os.getpid()
        return self._opened

    def _info(self) -> dict[str, Any] | None:
        filesystem, path = self._located()
        try:
            filesystem.invalidate_cache()
            info: dict[str, Any] = filesystem.info(path)
        except Exception as error:
            if is_missing(error):
                return None
            raise place_error(error) from error
        return info

    def _open_web_file(self, filesystem: Any, path: str) -> io.RawIOBase:
        info = filesystem.info(path)
        self._refuse_change(web.version_of(info))
        if self._copy is None and not self._is_served_in_parts:
            self._is_served_in_parts = web.serves_parts(filesystem, path, info)
            if not self._is_served_in_parts:
                self._copy = web.TemporaryCopy(filesystem, path, info["size"])
        if self._copy is not None:
            return self._copy.opened()
        return _RawFile(filesystem.open(path, "rb", cache_type="none", size=info["size"]))

    def _refuse_change(self, version: str) -> None:
        if self._version not in (None, version):
            raise LocationError("the file has changed since it was first read", True)
        self._version = version


Place = Path | RemotePath


def place_of(text: str) -> Place:
    """Return the place that a path or a URL names. Nothing is opened yet."""
    path = local_path(text)
    return RemotePath(text) if path is None else path


def relative_name(place: Place, folder: Place) -> str:
    """Return the names that lead from a folder to a place of the same kind."""
    within: Any = place
    return str(within.relative_to(folder).as_posix())


def _given(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value
    if lacks_slash(value) and not Path(value).exists():
        raise ValueError("a URL has two slashes after its scheme, like s3://bucket/folder")
    if is_strange(value):
        raise ValueError("is neither a path nor a URL like s3://bucket/folder")
    return place_of(value)


def _writable(place: Place) -> Place:
    if isinstance(place, RemotePath) and is_read_only(place.url):
        raise ValueError(
            f"nothing can be written over {scheme_of(place.url)}://; give a directory, or a URL "
            "like s3://bucket/folder, gs://bucket/folder or hf://datasets/owner/name"
        )
    return place


def _local(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("must not be empty")
    path = local_path(value)
    if path is None or lacks_slash(value) or is_strange(value):
        raise ValueError("must be a directory of this machine")
    return path


# The types of flags that take a path or a URL: to read, and to write.
GivenPlace = Annotated[Place, BeforeValidator(_given)]
GivenOutput = Annotated[GivenPlace, AfterValidator(_writable)]
# The type of a flag that takes a directory of this machine, where a URL might be expected.
GivenDirectory = Annotated[Path, BeforeValidator(_local)]


class _ReadAhead(io.BufferedReader):
    """A buffer that is filled as a whole, also for a decoder, which reads a few KB at a time."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)
        return super().read1(size)


class _RawFile(io.RawIOBase):
    """A file of `fsspec` without a cache, whose errors have words."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with location_errors():
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with location_errors():
            data = self._file.read(len(view))
            if not data and len(view) and self.tell() < (getattr(self._file, "size", None) or 0):
                # It says where the file ends.
                raise LocationError(CUT_OFF)
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
