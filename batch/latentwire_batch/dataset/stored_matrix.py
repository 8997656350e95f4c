"""The matrix columns of a file: which there are, how they are stored, and one row's matrix.

Takes lists of every Arrow kind, so that files which other tools have rewritten can be read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from latentwire.number_formats import VALUE_DTYPES, EncodedRows, Scales, Values, has_scales
from latentwire.storage import (
    DECLARATION_KEY,
    STORAGE,
    MatrixStorage,
    StorageDeclarationError,
    declared_storage,
    scale_column,
)
from latentwire_batch.dataset.matrices import VALUE_TYPES
from latentwire_batch.dataset.schema import LATENT_COLUMN
from latentwire_batch.errors import InputError


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix column of a file.

    Attributes:
        name: of the column.
        storage: of its rows.
    """

    name: str
    storage: MatrixStorage

    @property
    def names(self) -> list[str]:
        """The columns of the file that hold it."""
        if not has_scales(self.storage.dtype):
            return [self.name]
        return [self.name, scale_column(self.name)]

    def at(self, batch: pa.RecordBatch, position: int) -> EncodedRows | None:
        """Return the matrix of one row of a batch; None when it is ragged.

        Raises:
            StorageDeclarationError: when it is not of the width that is declared.
        """
        # A slice of one row: its values are views of the batch's, nothing is decoded twice.
        values = self._values(batch.column(self.name).slice(position, 1).flatten())
        if values is None:
            return None
        scales: Scales | None = None
        if has_scales(self.storage.dtype):
            flat = batch.column(scale_column(self.name)).slice(position, 1).flatten()
            if flat.null_count or len(flat) != len(values):
                return None
            scales = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return self.storage.encoded(values, scales)

    def _values(self, rows: pa.Array) -> Values | None:
        """Return the stored values of one matrix, `[rows, stored width]`; None when ragged."""
        lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
        values = rows.flatten()
        dtype = VALUE_DTYPES[self.storage.dtype]
        if len(lengths) > 1 or values.null_count:
            return None
        if not len(lengths):
            return np.empty((0, 0), dtype=dtype)
        flat = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        matrix: Values = flat.reshape(len(rows), int(lengths[0]))
        return matrix


def stored_matrix(schema: pa.Schema, name: str) -> StoredMatrix:
    """Return a matrix column of a file.

    Raises:
        InputError: when there is no such column, it holds no matrices of numbers, or the file does
            not say how it is stored.
    """
    if name not in schema.names:
        raise InputError(f"has no column {name}")
    kind = schema.field(name).type
    if not (_is_list(kind) and _is_list(kind.value_type)):
        raise InputError(f"column {name} is not a list of lists of numbers")
    number = kind.value_type.value_type
    if pa.types.is_floating(number):
        # Whatever is declared: another tool may have decoded the column.
        is_half = number == pa.float16()
        return StoredMatrix(name, MatrixStorage("float16" if is_half else "float32"))
    try:
        storage = declared_storage(declaration_of(schema) or {}, name)
    except StorageDeclarationError as error:
        raise InputError(str(error)) from error
    if storage is None or number != VALUE_TYPES[storage.dtype]:
        raise InputError(
            f"column {name} holds {number}, not floating-point numbers, and the file does not say "
            "what they mean"
        )
    matrix = StoredMatrix(name, storage)
    missing = [column for column in matrix.names if column not in schema.names]
    if missing:
        raise InputError(f"has no column {missing[0]}")
    return matrix


def matrix_names(schema: pa.Schema) -> list[str]:
    """Name the columns of a file that hold matrices of numbers that it explains, in their order.

    Whole numbers that nothing is said about are another tool's, except in the latent's column.
    """
    stored = (declaration_of(schema) or {}).get(STORAGE)
    declared = {LATENT_COLUMN, *(stored if isinstance(stored, dict) else ())}
    return [field.name for field in schema if _holds_matrices(field.type, field.name in declared)]


def declaration_of(schema: pa.Schema) -> dict[str, Any] | None:
    """Return what a file's metadata says about how it was made; None when nothing."""
    text = (schema.metadata or {}).get(DECLARATION_KEY)
    try:
        value = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _holds_matrices(kind: pa.DataType, is_declared: bool) -> bool:
    if not (_is_list(kind) and _is_list(kind.value_type)):
        return False
    number = kind.value_type.value_type
    return bool(pa.types.is_floating(number) or (is_declared and pa.types.is_integer(number)))


def _is_list(kind: pa.DataType) -> bool:
    is_kind = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_kind)
