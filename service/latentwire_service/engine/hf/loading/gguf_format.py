"""GGUF headers: which tensors a file holds, and whether their bytes are all there.

Reads no tensor. The libraries below check little: a short file gives them any exception.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire_service.engine.errors import DamagedModelError, UnsupportedModelError
from latentwire_service.engine.hf.loading.weight_files import LFS_POINTER

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
_VERSIONS = (2, 3)
_OLDER_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt")
# Struct formats of the value types of fixed size, by their numbers.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 4
_MAX_DIMENSIONS = 8

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's entry in the header.

    Attributes:
        dimensions: sizes, the fastest one first.
        kind: the number of its quantization type.
        start: offset of its bytes in the file.
        num_bytes: how many there are.
    """

    name: str
    dimensions: Sequence[int]
    kind: int
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        version: of the format.
        num_fields: entries of metadata.
        fields_range: first byte of the metadata, and the first byte after it.
        fields: scalars and texts of the metadata; for an array, its length.
        tensors: in the order of the file.
    """

    file: Path
    version: int
    num_fields: int
    fields_range: tuple[int, int]
    fields: Mapping[str, Scalar]
    tensors: Sequence[GgufTensor]

    @property
    def alignment(self) -> int:
        """Multiple of bytes at which tensors start."""
        return int(self.fields.get("general.alignment", DEFAULT_ALIGNMENT))


def read_header(file: Path) -> GgufHeader:
    """Read a file's header, and check that the file is whole.

    Raises:
        DamagedModelError: the file is no GGUF file, or part of it is missing.
        UnsupportedModelError: its version, byte order or a tensor's type cannot be read.
        OSError: the file cannot be read.
    """
    with file.open("rb") as stream:
        _check_magic(file, stream.read(64))
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(file, content).read()
            except (struct.error, UnicodeDecodeError, OverflowError, _CutError) as error:
                raise DamagedModelError(
                    f"{file.name} cannot be converted: it is cut short or damaged"
                ) from error


def is_gguf(file: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _check_magic(file: Path, start: bytes) -> None:
    failure = f"{file.name} cannot be converted"
    if not start:
        raise DamagedModelError(f"{failure}: it is empty")
    if start.startswith(LFS_POINTER):
        raise DamagedModelError(
            f"{failure}: it is a pointer of Git LFS; `git lfs pull` downloads the file"
        )
    if start[:4] in _OLDER_MAGICS:
        raise UnsupportedModelError(
            f"{failure}: it is in a format older than GGUF; convert the model again"
        )
    if not start.startswith(MAGIC):
        raise DamagedModelError(f"{failure}: it is not a GGUF file")
    if len(start) < 24:
        raise DamagedModelError(f"{failure}: it is cut short or damaged")
    (version,) = struct.unpack_from("<I", start, 4)
    if version in _VERSIONS:
        return
    if int.from_bytes(start[4:8], "big") in (1, *_VERSIONS):
        raise UnsupportedModelError(
            f"{failure}: its byte order is big-endian; convert the model again, to little-endian"
        )
    advice = "convert the model again" if version < min(_VERSIONS) else "only 2 and 3 are known"
    raise UnsupportedModelError(f"{failure}: it is GGUF version {version}; {advice}")


class _CutError(Exception):
    """The header points to bytes that the file does not have."""


class _Reader:
    """Reads one header from the beginning."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file = file
        self._content = content
        self._position = 4

    def read(self) -> GgufHeader:
        version = int(self._scalar("I"))
        num_tensors, num_fields = int(self._scalar("Q")), int(self._scalar("Q"))
        first = self._position
        fields: dict[str, Scalar] = {}
        for _ in range(num_fields):
            name = self._text()
            fields[name] = self._value(int(self._scalar("I")))
        last = self._position
        entries = [self._entry() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _CutError
        data = math.ceil(self._position / alignment) * alignment
        tensors = [self._tensor(data, *entry) for entry in entries]
        return GgufHeader(self._file, version, num_fields, (first, last), fields, tensors)

    def _scalar(self, kind: str) -> int | float | bool:
        (value,) = struct.unpack_from(f"<{kind}", self._content, self._position)
        self._position += struct.calcsize(f"<{kind}")
        return value  # type: ignore[no-any-return]  # struct returns Any

    def _text(self) -> str:
        length = int(self._scalar("Q"))
        self._skip(length)
        return self._content[self._position - length : self._position].decode("utf-8")

    def _skip(self, length: int) -> None:
        self._position += length
        if self._position > len(self._content):
            raise _CutError

    def _value(self, kind: int, depth: int = 0) -> Scalar:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY or depth > _MAX_DEPTH:
            raise _CutError
        element, count = int(self._scalar("I")), int(self._scalar("Q"))
        if element in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[element]}"))
        elif element == _STRING:
            for _ in range(count):
                self._skip(int(self._scalar("Q")))
        else:
            for _ in range(count):
                self._value(element, depth + 1)
        return count

    def _entry(self) -> tuple[str, list[int], int, int]:
        name = self._text()
        num_dimensions = int(self._scalar("I"))
        if num_dimensions > _MAX_DIMENSIONS:
            raise _CutError
        dimensions = [int(self._scalar("Q")) for _ in range(num_dimensions)]
        return name, dimensions, int(self._scalar("I")), int(self._scalar("Q"))

    def _tensor(
        self, data: int, name: str, dimensions: list[int], kind: int, offset: int
    ) -> GgufTensor:
        # Only GGUF models need the package.
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise UnsupportedModelError(
                f"{self._file.name} cannot be converted: {name} has quantization type {kind}, "
                "which is not known; use a file with another quantization"
            ) from error
        num_bytes = math.prod(dimensions) // per_block * block_bytes
        start = data + offset
        if start + num_bytes > len(self._content):
            missing = start + num_bytes - len(self._content)
            raise DamagedModelError(
                f"{self._file.name} cannot be converted: it is cut short; {name} ends "
                f"{missing:,} bytes after its end. Download it again"
            )
        return GgufTensor(name, dimensions, kind, start, num_bytes)
