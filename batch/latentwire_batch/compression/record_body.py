"""Matrices of one row as the body of a record: their arrays behind each other.

The record's JSON object describes them, so that a log can be read without the settings of its run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import VALUE_DTYPES, EncodedRows, has_scales, stored_width

_SCALE_DTYPE = np.dtype("<f4")


def describe_matrices(matrices: Mapping[str, EncodedRows]) -> list[dict[str, Any]]:
    """Return what `empty_matrices` needs, as JSON values.

    Args:
        matrices: of one row, by column.
    """
    return [
        {
            "column": column,
            "dtype": matrix.format,
            "rows": len(matrix.values),
            "width": matrix.width,
            "rotation": matrix.rotation,
        }
        for column, matrix in matrices.items()
    ]


def empty_matrices(described: Iterable[Mapping[str, Any]]) -> dict[str, EncodedRows]:
    """Return matrices whose arrays are to be filled.

    Args:
        described: by `describe_matrices`.

    Raises:
        LookupError, TypeError, ValueError: when it is no such description.
    """
    matrices = {}
    for entry in described:
        number, num_rows, width = entry["dtype"], entry["rows"], entry["width"]
        values = np.empty((num_rows, stored_width(number, width)), VALUE_DTYPES[number])
        scales = np.empty(num_rows, _SCALE_DTYPE) if has_scales(number) else None
        matrices[entry["column"]] = EncodedRows(number, values, scales, width, entry["rotation"])
    return matrices


def body_arrays(matrices: Mapping[str, EncodedRows]) -> list[npt.NDArray[Any]]:
    """Return the arrays of which the body consists, in order and in C order."""
    arrays: list[npt.NDArray[Any]] = []
    for matrix in matrices.values():
        arrays.append(np.ascontiguousarray(matrix.values, VALUE_DTYPES[matrix.format]))
        if matrix.scales is not None:
            arrays.append(np.ascontiguousarray(matrix.scales, _SCALE_DTYPE))
    return arrays


def body_pieces(matrices: Mapping[str, EncodedRows]) -> list[memoryview]:
    """Return the body as pieces of bytes."""
    return [array.reshape(-1).view(np.uint8).data for array in body_arrays(matrices)]
