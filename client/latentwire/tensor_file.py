"""The tensors of a safetensors file as numpy arrays, for files that anyone may have written.

This needs no dependency with compiled code. Nothing in the file is trusted: a wrong size, place or
type is an error, and the memory in use never exceeds a few times the file.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 1 << 24
_METADATA = "__metadata__"
_MAX_FILE_BYTES = 1 << 34
_MAX_DIMENSIONS = 8
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class TensorFileError(ValueError):
    """A file of tensors is damaged, or holds what this module does not read."""


class _Place(NamedTuple):
    """Where a tensor is: bytes `start` to `end` of the values."""

    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read a safetensors file.

    Args:
        path: of the file; its tensors are float32, float16 or bfloat16.

    Returns:
        Each tensor as float32, by name.

    Raises:
        OSError: it cannot be read.
        TensorFileError: it is damaged, or a tensor has another dtype; the text has the file's name.
    """
    size = _size(path)
    if size > _MAX_FILE_BYTES:
        raise TensorFileError(f"{path.name} is larger than 16 GiB")
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        header = file.read(length) if length <= _MAX_HEADER_BYTES else b""
        try:
            entries = json.loads(header)
            entries.pop(_METADATA, None)
            places = {name: _place(entry) for name, entry in entries.items()}
            num_bytes = size - _LENGTH.size - length
            _check_cover(list(places.values()), num_bytes)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TensorFileError(f"{path.name} is damaged") from error
        values = file.read(num_bytes)
    if len(values) != num_bytes:
        raise TensorFileError(f"{path.name} is damaged")
    return {name: _tensor(values, place) for name, place in places.items()}


def _size(path: Path) -> int:
    """Return the size of a regular file; anything else, such as a pipe, could block forever."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise TensorFileError(f"{path.name} is no file")
    return facts.st_size


def _place(entry: dict[str, Any]) -> _Place:
    dtype, shape = entry["dtype"], entry["shape"]
    start, end = entry["data_offsets"]
    if not all(type(size) is int and size >= 0 for size in (start, end, *shape)):
        raise ValueError("a size is no whole number")
    if len(shape) > _MAX_DIMENSIONS or end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError("a tensor's shape does not fit its bytes")
    return _Place(start, end, dtype, tuple(shape))


def _check_cover(places: list[_Place], num_bytes: int) -> None:
    """Check that each byte belongs to one tensor, as the format demands.

    Tensors that share bytes could take any amount of memory.
    """
    places = sorted(places)
    starts, ends = [place.start for place in places], [place.end for place in places]
    if [0, *ends] != [*starts, num_bytes]:
        raise ValueError("the tensors overlap, leave a gap or are cut short")


def _tensor(values: bytes, place: _Place) -> npt.NDArray[np.float32]:
    dtype = _DTYPES[place.dtype]
    count = (place.end - place.start) // dtype.itemsize
    read = np.frombuffer(values, dtype=dtype, count=count, offset=place.start)
    if place.dtype == "BF16":
        # The upper half of a float32.
        read = (read.astype(np.uint32) << 16).view(np.float32)
    result: npt.NDArray[np.float32] = read.astype(np.float32).reshape(place.shape)
    return result
