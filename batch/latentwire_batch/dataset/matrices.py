"""Matrix columns: their Arrow types in each number format, and buffers that are filled in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire.number_formats import (
    VALUE_DTYPES,
    EncodedRows,
    NumberFormat,
    Scales,
    Values,
    has_scales,
)
from latentwire.storage import MatrixStorage, scale_column

VALUE_TYPES: Mapping[NumberFormat, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    # Arrow has no bfloat16: its bits.
    "bfloat16": pa.uint16(),
    "int8": pa.int8(),
    # Two codes in each byte.
    "int4": pa.uint8(),
}
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        name: of the column.
        type: of its values.
        meaning: for the dataset card; `{width}` stands for the hidden size.
    """

    name: str
    type: pa.DataType
    meaning: str

    @property
    def feature(self) -> dict[str, Any]:
        """The column as `datasets` writes it into `dataset_info.json`."""
        return _feature(self.type)


class Shape(NamedTuple):
    """Size of one row's matrix, as it is meant: `width` values in each of `num_rows` rows."""

    num_rows: int
    width: int


class Place(NamedTuple):
    """Where one encoded matrix is to be written.

    Attributes:
        values: `[rows, stored width]`, C order.
        scales: `[rows]` float32; None where the format has none.
    """

    values: Values
    scales: Scales | None

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """Values, then scales: the order in which a journal stores them."""
        return [self.values] if self.scales is None else [self.values, self.scales]

    def fill(self, encoded: EncodedRows) -> None:
        """Copy an encoded matrix of this size."""
        self.values[:] = encoded.values
        if self.scales is not None:
            self.scales[:] = encoded.scales


@dataclass(frozen=True)
class MatrixColumn:
    """A column of matrices, one for each row of the dataset.

    Attributes:
        name: of the column.
        storage: number format, width and rotation of its rows.
        meaning: for the dataset card, without the number format; `{width}` stands for the hidden
            size.
    """

    name: str
    storage: MatrixStorage = field(default_factory=MatrixStorage)
    meaning: str = "a matrix"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the files: that of the values, and that of the scales if there are any."""
        dtype = self.storage.dtype
        kind = pa.list_(pa.list_(VALUE_TYPES[dtype]))
        values = Column(self.name, kind, f"{self.meaning} {_described(self.storage)}")
        if not has_scales(dtype):
            return (values,)
        meaning = f"one float32 scale for each row of `{self.name}`"
        return values, Column(scale_column(self.name), pa.list_(pa.float32()), meaning)

    def shape_of(self, encoded: EncodedRows) -> Shape:
        """Return the size of an encoded matrix."""
        return Shape(len(encoded.values), encoded.width)

    def num_bytes(self, shape: Shape) -> int:
        """Return how many bytes a matrix takes."""
        num_values = shape.num_rows * self.storage.stored_width(shape.width)
        num_scales = shape.num_rows if has_scales(self.storage.dtype) else 0
        return num_values * VALUE_DTYPES[self.storage.dtype].itemsize + num_scales * _SCALE_BYTES


class MatrixBuffer:
    """The values of one matrix column in one batch, in one buffer that sources fill in place.

    Args:
        column: which is filled.
        num_bytes: memory that is taken at first; it grows for a batch that needs more.
    """

    def __init__(self, column: MatrixColumn, num_bytes: int) -> None:
        self._column = column
        self._dtype = VALUE_DTYPES[column.storage.dtype]
        self._values = np.empty(num_bytes // self._dtype.itemsize, dtype=self._dtype)
        self._has_scales = has_scales(column.storage.dtype)
        self._scales = np.empty(0, dtype=np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the matrices; the memory is used again."""
        self._row_counts: list[int] = []
        self._stored_widths: list[int] = []
        self.num_values = 0
        self._num_rows = 0

    def values_after(self, shape: Shape) -> int:
        """Return how many values there are after one more matrix."""
        return self.num_values + shape.num_rows * self._column.storage.stored_width(shape.width)

    def add(self, shape: Shape) -> Place:
        """Take the place of the next matrix, to be filled before `arrays`.

        Places of earlier matrices stay valid unless the buffer has to grow.
        """
        width = self._column.storage.stored_width(shape.width)
        first, last = self.num_values, self.values_after(shape)
        self._values = _grown(self._values, last, first)
        self._row_counts.append(shape.num_rows)
        self._stored_widths.append(width)
        self.num_values = last
        scales = None
        if self._has_scales:
            end = self._num_rows + shape.num_rows
            self._scales = _grown(self._scales, end, self._num_rows)
            scales = self._scales[self._num_rows : end]
        self._num_rows += shape.num_rows
        return Place(self._values[first:last].reshape(shape.num_rows, width), scales)

    def arrays(self) -> list[pa.Array]:
        """Return the columns of the batch; they are this buffer, not a copy."""
        row_widths = np.repeat(self._stored_widths, self._row_counts)
        rows = pa.ListArray.from_arrays(
            _offsets(row_widths),
            _flat(VALUE_TYPES[self._column.storage.dtype], self._values[: self.num_values]),
        )
        offsets = _offsets(self._row_counts)
        arrays = [pa.ListArray.from_arrays(offsets, rows)]
        if self._has_scales:
            scales = _flat(pa.float32(), self._scales[: self._num_rows])
            arrays.append(pa.ListArray.from_arrays(offsets, scales))
        return arrays


def _grown(array: Values, size: int, num_used: int) -> Values:
    """Return an array that holds `size` values, the used ones kept."""
    if size <= array.size:
        return array
    larger = np.empty(max(size, 2 * num_used), dtype=array.dtype)
    larger[:num_used] = array[:num_used]
    return larger


def _flat(kind: pa.DataType, values: Values) -> pa.Array:
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(values)])


def _offsets(lengths: Sequence[int] | npt.NDArray[np.int64]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.array(offsets)


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        # "Sequence", not the newer "List", because every version of `datasets` reads it.
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": _VALUE_NAMES[kind], "_type": "Value"}


_VALUE_NAMES = {
    pa.string(): "string",
    pa.float32(): "float32",
    pa.float16(): "float16",
    pa.int8(): "int8",
    pa.uint8(): "uint8",
    pa.uint16(): "uint16",
    pa.int32(): "int32",
    pa.int64(): "int64",
}


def _described(storage: MatrixStorage) -> str:
    return {
        "float32": "float32",
        "float16": "float16",
        "bfloat16": "bfloat16, as the bits of each value",
        "int8": "int8 codes",
        "int4": "int4 codes, two in each byte",
    }[storage.dtype]
