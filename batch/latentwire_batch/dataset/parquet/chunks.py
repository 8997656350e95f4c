"""The pages of one column of matrices in one row group.

Arrow spends as long on the nesting of the values as on compressing them, because it looks at every
value. Here the nesting follows from the offsets: all values are there, and all hidden rows are as
wide.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire.number_formats import VALUE_DTYPES, NumberFormat
from latentwire_batch.dataset.matrices import VALUE_TYPES, MatrixColumn
from latentwire_batch.dataset.parquet.thrift import Kind, Value, encode_struct, varint

# As large as Arrow's.
_PAGE_BYTES = 1 << 20
# Of an optional list of optional lists of optional values: levels of a value that is there.
_DEFINITION_LEVEL = 5
_SAME_HIDDEN_ROW, _SAME_ROW, _NEW_ROW = 2, 1, 0
_DATA_PAGE = 0
PLAIN, _RLE, BYTE_STREAM_SPLIT = 0, 3, 9
_PARQUET_BYTES = 4


class Layout(NamedTuple):
    """How Parquet holds the values of a number format.

    Attributes:
        type: Parquet's number for the physical type.
        encoding: Parquet's number.
    """

    type: int
    encoding: int


# Codes are left to Arrow, which keeps them in a dictionary.
LAYOUTS: dict[NumberFormat, Layout] = {
    "float32": Layout(4, BYTE_STREAM_SPLIT),
    "bfloat16": Layout(1, BYTE_STREAM_SPLIT),
    "float16": Layout(7, PLAIN),
}


class Page(NamedTuple):
    """One encoded page.

    Attributes:
        header: its bytes.
        body: compressed.
        num_bytes: of the header and the body before its compression.
    """

    header: bytes
    body: pa.Buffer
    num_bytes: int


@dataclass(frozen=True, eq=False)
class Chunk:
    """The values of one column in one row group.

    Attributes:
        values: `[hidden rows, width]` in the number format; views of the batch.
        starts_row: `[hidden rows]` bool, whether a row of the dataset begins.
        layout: of the values.
    """

    values: npt.NDArray[Any]
    starts_row: npt.NDArray[np.bool_]
    layout: Layout

    @classmethod
    def of(cls, column: MatrixColumn, field: pa.Field, array: pa.ListArray) -> Chunk | None:
        """Look at a column; None if only Arrow can encode it.

        Args:
            column: which it is.
            field: of the file's schema.
            array: its matrices.
        """
        dtype = column.storage.dtype
        layout = LAYOUTS.get(dtype)
        expected = pa.list_(pa.list_(VALUE_TYPES[dtype]))
        if layout is None or not field.nullable or field.type != expected:
            return None
        hidden_rows = array.flatten()
        values = hidden_rows.flatten()
        if array.null_count or hidden_rows.null_count or values.null_count:
            return None
        starts = array.offsets.to_numpy()
        widths = np.diff(hidden_rows.offsets.to_numpy())
        # An empty matrix has levels of its own.
        if not widths.size or not np.diff(starts).all():
            return None
        if not widths[0] or (widths != widths[0]).any():
            return None
        starts_row = np.zeros(widths.size, dtype=np.bool_)
        starts_row[starts[:-1] - starts[0]] = True
        data = np.frombuffer(values.buffers()[1], dtype=VALUE_DTYPES[dtype])
        data = data[values.offset : values.offset + len(values)]
        return cls(data.reshape(widths.size, widths[0]), starts_row, layout)

    def pages(self) -> Iterator[Chunk]:
        """Cut the values into pages of whole hidden rows, in order."""
        num_rows, width = self.values.shape
        step = max(1, _PAGE_BYTES // (width * _PARQUET_BYTES))
        for start in range(0, num_rows, step):
            rows = slice(start, start + step)
            yield Chunk(self.values[rows], self.starts_row[rows], self.layout)

    def levels(self) -> bytes:
        """Return how the values are nested, as the first part of one page of them all."""
        return _with_size(self._repetition_levels()) + _with_size(self._definition_levels())

    @property
    def num_value_bytes(self) -> int:
        """Size of the second part of the page, the encoded values."""
        is_split = self.layout.encoding == BYTE_STREAM_SPLIT
        return self.values.size * (_PARQUET_BYTES if is_split else self.values.itemsize)

    def write_values(self, out: npt.NDArray[np.uint8]) -> None:
        """Encode the values.

        Args:
            out: `[num_value_bytes]`, filled.
        """
        flat = self.values.reshape(-1)
        if self.layout.encoding == PLAIN:
            out[:] = flat.view(np.uint8)
            return
        words = flat.view(f"u{flat.itemsize}")
        for number, stream in enumerate(out.reshape(_PARQUET_BYTES, flat.size)):
            if number < flat.itemsize:
                # The lowest byte of each word; NumPy does this faster than a transposition.
                np.right_shift(words, 8 * number, out=stream, casting="unsafe")
            else:
                stream[:] = 0

    def _repetition_levels(self) -> bytes:
        """Two bits each: for every hidden row a run of its first value, and one of the others."""
        width = self.values.shape[1]
        others = varint((width - 1) << 1) + bytes([_SAME_HIDDEN_ROW]) if width > 1 else b""
        one = varint(1 << 1) + bytes([_SAME_ROW]) + others
        runs = np.tile(np.frombuffer(one, dtype=np.uint8), (len(self.values), 1))
        runs[self.starts_row, 1] = _NEW_ROW
        return runs.tobytes()

    def _definition_levels(self) -> bytes:
        """Three bits each: one run."""
        return varint(self.values.size << 1) + bytes([_DEFINITION_LEVEL])


class PageEncoder:
    """Encodes and compresses pages; may be called from several threads.

    Args:
        compression_level: of zstd.
    """

    def __init__(self, compression_level: int) -> None:
        self._codec = pa.Codec("zstd", compression_level)
        # A fresh megabyte costs as much time as filling it.
        self._memory = threading.local()

    def encode(self, page: Chunk) -> Page:
        """Encode all values of a chunk as one page."""
        levels = page.levels()
        body = self._room(len(levels) + page.num_value_bytes)
        body[: len(levels)] = np.frombuffer(levels, dtype=np.uint8)
        page.write_values(body[len(levels) :])
        compressed = self._codec.compress(pa.py_buffer(body))
        header = _page_header(body.size, compressed.size, page.values.size, page.layout.encoding)
        return Page(header, compressed, len(header) + body.size)

    def _room(self, size: int) -> npt.NDArray[np.uint8]:
        memory: npt.NDArray[np.uint8] | None = getattr(self._memory, "page", None)
        if memory is None or memory.size < size:
            memory = self._memory.page = np.empty(size, dtype=np.uint8)
        return memory[:size]


def _with_size(levels: bytes) -> bytes:
    return len(levels).to_bytes(4, "little") + levels


def _page_header(num_bytes: int, num_compressed: int, num_values: int, encoding: int) -> bytes:
    data = {
        1: Value(Kind.I32, num_values),
        2: Value(Kind.I32, encoding),
        3: Value(Kind.I32, _RLE),
        4: Value(Kind.I32, _RLE),
    }
    return encode_struct(
        {
            1: Value(Kind.I32, _DATA_PAGE),
            2: Value(Kind.I32, num_bytes),
            3: Value(Kind.I32, num_compressed),
            5: Value(Kind.STRUCT, data),
        }
    )
