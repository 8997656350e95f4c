"""Files of web servers, behind `http://` and `https://`, which promise less than stores do.

A server may serve no parts of a file, may not know its size, may compress it on the way, or may
lead to another address at each request.
"""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import urlsplit

from latentwire_batch.errors import LocationError, reason_of
from latentwire_batch.locations.errors import CUT_OFF, location_errors

SCHEMES = frozenset({"http", "https"})
_CONNECT_TIMEOUT_S = 30.0
# The longest silence, not the time of a whole file.
_READ_TIMEOUT_S = 60.0
_COPY_BYTES = 1 << 20
# Those of a file alone: the address of one answer may be signed for that answer.
_VERSION_FIELDS = ("size", "ETag", "Content-MD5", "Digest", "Last-Modified")


def refuse_malformed(url: str) -> None:
    """Refuse a URL that leads to no server.

    Raises:
        LocationError: naming what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise LocationError("is not a valid URL", True) from error
    if not host:
        raise LocationError(f"names no host between {parts.scheme}:// and the next /", True)
    try:
        port = parts.port
    except ValueError as error:
        raise LocationError("must name a port from 1 to 65535 behind the host", True) from error
    if port == 0:
        raise LocationError("must name a port from 1 to 65535 behind the host", True)


def client_options(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the library's HTTP client.

    Args:
        configured: by the user, in the configuration of `fsspec`; they win.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S
    )
    # Parts of a compressed answer cannot be decompressed.
    headers = {"Accept-Encoding": "identity", **configured.get("headers", {})}
    return {"timeout": timeout, **configured, "headers": headers}


def version_of(info: Mapping[str, Any]) -> str:
    """Return what changes when the content of a file changes, as far as its server says.

    Args:
        info: of the file, as `fsspec` gives it.
    """
    return repr([info.get(name) for name in _VERSION_FIELDS])


def serves_parts(filesystem: Any, url: str, info: Mapping[str, Any]) -> bool:
    """Whether a server sends the part of a file that a request names, by one small request."""
    from fsspec.asyn import sync

    size = info.get("size")
    if not size or info.get("partial") is False:
        return False

    async def probe() -> bool:
        session = await filesystem.set_session()
        headers = {"Range": "bytes=0-0"}
        async with session.get(filesystem.encode_url(url), headers=headers) as answer:
            answer.raise_for_status()
            said = answer.headers.get("Content-Range", "")
            return answer.status == 206 and said.rpartition("/")[2] in (str(size), "*")

    return bool(sync(filesystem.loop, probe))


class TemporaryCopy:
    """A file of a server, copied whole to a temporary file, which goes with this value.

    Args:
        filesystem: of the server.
        url: of the file.
        size: in bytes; None or 0 where the server does not say.

    Raises:
        LocationError: when it cannot be copied.
    """

    def __init__(self, filesystem: Any, url: str, size: int | None) -> None:
        try:
            # Kept open: it has no name.
            self._file = tempfile.TemporaryFile(prefix="latentwire-")  # noqa: SIM115
        except OSError as error:
            raise _local(error) from error
        weakref.finalize(self, self._file.close)
        # Without blocks, it is read by one request.
        with location_errors(), filesystem.open(url, "rb", block_size=0, size=size) as source:
            self.size = self._copied(source)
        if size and self.size != size:
            raise LocationError(CUT_OFF)

    def opened(self) -> io.RawIOBase:
        """Return a file that reads the copy."""
        return _CopyReader(self)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes of the copy; fewer at its end."""
        return os.pread(self._file.fileno(), num_bytes, offset)

    def _copied(self, source: IO[bytes]) -> int:
        num_bytes = 0
        while piece := source.read(_COPY_BYTES):
            try:
                self._file.write(piece)
            except OSError as error:
                raise _local(error) from error
            num_bytes += len(piece)
        try:
            self._file.flush()
        except OSError as error:
            raise _local(error) from error
        return num_bytes


class _CopyReader(io.RawIOBase):
    """A reader of a copy, with a place of its own; other processes may read the same copy."""

    def __init__(self, copy: TemporaryCopy) -> None:
        self._copy = copy
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._copy.size}
        self._offset = starts[whence] + offset
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._copy.read(self._offset, len(view))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)


def _local(error: OSError) -> LocationError:
    return LocationError(
        "its server does not serve parts of it, and it cannot be copied to a temporary file: "
        f"{reason_of(error)}"
    )
