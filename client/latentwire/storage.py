"""How a stored dataset keeps a matrix column: the part of its declaration that readers need.

Shared by everything that writes or reads datasets. Must not know Arrow or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentwire.number_formats import (
    NUMBER_FORMATS,
    EncodedRows,
    NumberFormat,
    Rows,
    Scales,
    Values,
    check_rotation,
    decode_rows,
    encode_rows,
    has_scales,
    stored_width,
)

DECLARATION_KEY = b"latentwire"
"""Key of the JSON object in a file's metadata that says how its rows were made and are stored."""
STORAGE = "storage"
"""Key of the declaration that maps column names to `MatrixStorage.to_json`."""
MAX_STORED_WIDTH = 2**31 - 1


class StorageDeclarationError(ValueError):
    """What a file says about a matrix column is missing or wrong."""


@dataclass(frozen=True)
class MatrixStorage:
    """How the rows of one matrix column are stored.

    Attributes:
        dtype: number format of the values.
        width: of the decoded rows; None: each row's own, with float32, float16 and bfloat16 only.
        rotation: seed of the rotation of int8 and int4; None: not rotated.
    """

    dtype: NumberFormat = "float32"
    width: int | None = None
    rotation: int | None = None

    def __post_init__(self) -> None:
        """Check the fields against each other; raises StorageDeclarationError."""
        if has_scales(self.dtype) and self.width is None:
            raise StorageDeclarationError(f"{self.dtype} needs the width of the rows")
        if self.rotation is not None:
            try:
                check_rotation(self.dtype, self.width or 0, self.rotation)
            except ValueError as error:
                raise StorageDeclarationError(str(error)) from error

    @classmethod
    def from_json(cls, value: object) -> MatrixStorage:
        """Read what `to_json` returned.

        Raises:
            StorageDeclarationError: when it is something else.
        """
        match value:
            case {"dtype": str(dtype), "width": int() | None as width, **further}:
                rotation = further.get("rotation")
                is_sized = width is None or 0 <= width <= MAX_STORED_WIDTH
                if dtype in NUMBER_FORMATS and is_sized and isinstance(rotation, int | None):
                    return cls(_FORMATS[dtype], width, rotation)
        raise StorageDeclarationError("must have a dtype, a width and a rotation")

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"dtype": self.dtype, "width": self.width, "rotation": self.rotation}

    def stored_width(self, width: int) -> int:
        """Return how many elements a stored row of `width` values has."""
        return stored_width(self.dtype, width)

    def encode(self, rows: Rows) -> EncodedRows:
        """Encode a `[n, width]` float32 matrix; raises NumberFormatError, which names the row."""
        return encode_rows(rows, self.dtype, rotation=self.rotation)

    def encoded(self, values: Values, scales: Scales | None) -> EncodedRows:
        """Join the arrays of one stored matrix.

        Args:
            values: `[n, stored width]`, of `VALUE_DTYPES[dtype]`; `[0, 0]` for no rows.
            scales: `[n]` float32; None where the format has none.

        Raises:
            StorageDeclarationError: when they are not of the width that is declared.
        """
        width = self.width
        if width is None:
            width = values.shape[1]
        if not len(values):
            values = values.reshape(0, self.stored_width(width))
        is_whole = values.shape[1] == self.stored_width(width)
        if not is_whole or (scales is not None) != has_scales(self.dtype):
            raise StorageDeclarationError(
                f"rows of {values.shape[1]} stored values are not {width} values as {self.dtype}"
            )
        return EncodedRows(self.dtype, values, scales, width, self.rotation)

    def decode(self, values: Values, scales: Scales | None) -> Rows:
        """Decode the arrays of one stored matrix to `[n, width]` float32; see `encoded`."""
        return decode_rows(self.encoded(values, scales))


_FORMATS: Mapping[str, NumberFormat] = {name: name for name in NUMBER_FORMATS}


def scale_column(name: str) -> str:
    """Return the name of the column with the scales of an int8 or int4 column."""
    return f"{name}_scale"


def declared_storage(declaration: Mapping[str, Any], column: str) -> MatrixStorage | None:
    """Return what a declaration says about a column; None when it says nothing.

    Args:
        declaration: JSON values of unknown origin.
        column: name of the matrix column.

    Raises:
        StorageDeclarationError: when it cannot be understood; the text names the column.
    """
    stored = declaration.get(STORAGE)
    if not isinstance(stored, Mapping) or column not in stored:
        return None
    try:
        return MatrixStorage.from_json(stored[column])
    except StorageDeclarationError as error:
        raise StorageDeclarationError(f"the storage of column {column} {error}") from error
