"""Compressed inputs: recognised by their first bytes, and read as what they hold.

Knows nothing of what is inside.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import pyarrow as pa

from latentwire_batch.errors import InputError, LocationError
from latentwire_batch.locations import Place

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
_MAX_MAGIC_BYTES = max(map(len, _MAGIC))
_MAX_NAMES = 5
# Members that macOS adds to every archive.
_MACOS_FOLDER = "__MACOSX/"
# Of decompressed data, which takes a second or two.
_MAX_CHECKED_BYTES = 128 << 20
_PIECE_BYTES = 1 << 20


class DamagedError(InputError):
    """Compressed data is damaged or cut off."""


@dataclass(frozen=True)
class InputFile:
    """A file that can be opened any number of times.

    Attributes:
        path: of the file.
        compression: its name; None for a file that is read as it is.
    """

    path: Place
    compression: str | None

    @classmethod
    def of(cls, path: Place) -> InputFile:
        """Recognise the compression of a file by its first bytes, whatever its name."""
        with path.open("rb") as file:
            return cls(path, compression_of(file.read(_MAX_MAGIC_BYTES)))

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the content, decompressed.

        Raises:
            DamagedError: when the compressed data is damaged.
            InputError: when an archive does not hold one file.
        """
        with (
            _damage_named(self.compression),
            self.path.open("rb") as raw,
            _decompressed(raw, self.compression) as file,
        ):
            yield file

    def refuse_damaged(self, content: IO[bytes]) -> None:
        """Read on in content that cannot be used: decoders find damage behind what it has spoiled.

        Args:
            content: as `open` gives it, while its context lasts.

        Raises:
            DamagedError: when the compressed data is damaged.
        """
        if self.compression is None:
            return
        with _damage_named(self.compression):
            for _ in range(_MAX_CHECKED_BYTES // _PIECE_BYTES):
                if not content.read(_PIECE_BYTES):
                    return


def compression_of(head: bytes) -> str | None:
    """Return the compression that the first bytes of a file show; None for none."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _decompressed(raw: IO[bytes], compression: str | None) -> IO[bytes]:
    match compression:
        case None:
            return raw
        case "gzip":
            return cast(IO[bytes], gzip.open(raw, "rb"))
        case "bzip2":
            return io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor))
        case "xz" | "lzma":
            return io.BufferedReader(_Streams(raw, lzma.LZMADecompressor))
        case "zip":
            return _opened_member(raw)
        case _:
            # The standard library of Python 3.11 has neither zstd nor lz4; Arrow has both.
            stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)
            return io.BufferedReader(cast(io.RawIOBase, stream))


class _Streams(io.RawIOBase):
    """Streams that follow one another, as `cat a.xz b.xz` writes them.

    The files of the standard library end without an error where the first bytes of a later stream
    are damaged, so rows would be missing.

    Args:
        raw: the compressed data.
        new_decoder: returns the decoder of one stream.
    """

    def __init__(
        self, raw: IO[bytes], new_decoder: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
    ) -> None:
        self._raw = raw
        self._new_decoder = new_decoder
        self._decoder = new_decoder()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read decompressed data; return the number of bytes, 0 at the end.

        Raises:
            EOFError: when a stream is cut off.
            OSError, lzma.LZMAError: when one is damaged.
        """
        target = memoryview(buffer).cast("B")
        while True:
            if self._decoder.eof:
                piece = self._next_stream()
                if not piece:
                    return 0
                self._decoder = self._new_decoder()
            elif self._decoder.needs_input:
                piece = self._raw.read(_PIECE_BYTES)
                if not piece:
                    raise EOFError
            else:
                piece = b""
            data = self._decoder.decompress(piece, len(target))
            if data:
                target[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bytes:
        """Return the first bytes behind a stream and its padding; empty at the end."""
        piece = self._decoder.unused_data or self._raw.read(_PIECE_BYTES)
        while piece and not (rest := piece.lstrip(b"\0")):
            piece = self._raw.read(_PIECE_BYTES)
        return rest if piece else b""


def _opened_member(raw: IO[bytes]) -> IO[bytes]:
    with zipfile.ZipFile(raw) as archive:
        names = [
            info.filename
            for info in archive.infolist()
            if not info.is_dir() and not info.filename.startswith(_MACOS_FOLDER)
        ]
        known = _known_archive(names)
        if known is not None:
            raise InputError(f"is {known}; convert it to JSON Lines or Parquet")
        if len(names) != 1:
            shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
            held = f"{len(names)} files ({shown})" if names else "no file"
            raise InputError(f"is a zip archive of {held}; unpack it and pass one file")
        # The member keeps the archive's file open after the archive is closed.
        return archive.open(names[0])


def _known_archive(names: list[str]) -> str | None:
    """Name the format that stores its parts in a zip archive; None for a plain archive."""
    if "[Content_Types].xml" in names:
        return "an Excel workbook" if any(n.startswith("xl/") for n in names) else "a document"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays"
    return "an OpenDocument file" if "mimetype" in names else None


@contextmanager
def _damage_named(compression: str | None) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise DamagedError(f"the {compression} data is damaged or cut off") from error
    except (RuntimeError, NotImplementedError) as error:
        if compression != "zip":
            raise
        # An encrypted member, or one in a compression that zipfile does not know.
        raise InputError("the zip archive cannot be decompressed; unpack it first") from error
    except OSError as error:
        if isinstance(error, LocationError) or compression is None or error.errno is not None:
            raise
        raise DamagedError(f"the {compression} data is damaged or cut off") from error
