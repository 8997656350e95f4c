"""How a latent is stored: which compressors, which number format, with or without all rows.

Collecting and `latentwire compress` share it, so their columns are equal. Knows neither files nor
replicas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.compressors import COMPRESSED, Compressor, CompressorError
from latentwire.errors import NumberFormatError
from latentwire.number_formats import (
    DEFAULT_ROTATION,
    EncodedRows,
    NumberFormat,
    has_scales,
)
from latentwire.storage import MatrixStorage
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.dataset.schema import LATENT_COLUMN, latent_column
from latentwire_batch.tasks.results import NotStorableError

Rows = npt.NDArray[np.float32]
Matrices = dict[str, EncodedRows]

COMPRESSION_FAILED = "compression-failed"
NUMBER_FORMAT = "number-format"
_MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class ColumnCompressor:
    """A compressor and the column that it fills.

    Attributes:
        column: its name.
        compressor: makes the column of the latent.
    """

    column: str
    compressor: Compressor

    def described(self) -> dict[str, Any]:
        """Return what the dataset says about the column, as JSON values."""
        compressor = self.compressor
        return {
            "name": compressor.name,
            "kind": compressor.kind,
            "content_hash": compressor.content_hash,
            "parameters": dict(compressor.parameters),
            "output": compressor.output,
        }

    def widths(self, width: int) -> dict[str, int]:
        """Return the width of each column that a latent of this width gives.

        Raises:
            CompressorError: when the compressor does not read this width.
        """
        made = self._compress(np.empty((0, width), dtype=np.float32))
        return {column: matrix.shape[1] for column, matrix in made.items()}

    def compress(self, rows: Rows) -> dict[str, Rows]:
        """Compress one latent.

        Args:
            rows: `[L, H]` float32.

        Returns:
            The matrices by column; the main one comes first.

        Raises:
            NotStorableError: when the compressor fails. Others write compressors, so any of its
                exceptions is about this one row.
        """
        try:
            return self._compress(rows)
        except CompressorError as error:
            raise self._failure(str(error)) from error
        except Exception as error:
            raise self._failure(f"{type(error).__name__}: {error}") from error

    def _compress(self, rows: Rows) -> dict[str, Rows]:
        made = dict(self.compressor.compress(rows))
        if COMPRESSED not in made:
            raise CompressorError(f"returned no array {COMPRESSED}")
        matrices = {self.column: made.pop(COMPRESSED)}
        matrices |= {f"{self.column}__{name}": matrix for name, matrix in made.items()}
        for column, matrix in matrices.items():
            if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype != np.float32:
                raise CompressorError(f"returned no two-dimensional float32 array for {column}")
        return matrices

    def _failure(self, reason: str) -> NotStorableError:
        text = " ".join(f"{self.compressor.name}: {reason}".split())
        return NotStorableError(COMPRESSION_FAILED, text[:_MAX_REASON_CHARS])


@dataclass(frozen=True)
class StoredForm:
    """The form in which a dataset stores its latents.

    Attributes:
        compressors: with their columns.
        replaces: whether the full latent is left out.
        dtype: of the full latent and of the compressors' main columns. Further arrays are float32.
        keeps_latent: whether a stored latent passes through as it is, so that no column is made
            of it.
    """

    compressors: tuple[ColumnCompressor, ...] = ()
    replaces: bool = False
    dtype: NumberFormat = "float32"
    keeps_latent: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the latent is stored as it comes."""
        return not self.compressors and not self.replaces and self.dtype == "float32"

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the description of each compressor, by column."""
        return {entry.column: entry.described() for entry in self.compressors}

    def encoder(self, width: int) -> LatentEncoder:
        """Return what stores latents of one width.

        Raises:
            CompressorError: when a compressor reads another width.
        """
        columns: list[MatrixColumn] = []
        if not self.replaces and not self.keeps_latent:
            columns.append(latent_column(_storage(self.dtype, width)))
        for entry in self.compressors:
            for name, column_width in entry.widths(width).items():
                dtype: NumberFormat = self.dtype if name == entry.column else "float32"
                is_main = name == entry.column
                meaning = compressed_meaning(entry.compressor.name, is_main, column_width)
                columns.append(MatrixColumn(name, _storage(dtype, column_width), meaning))
        return LatentEncoder(self.compressors, width, tuple(columns))


@dataclass(frozen=True)
class LatentEncoder:
    """Makes the stored matrices of latents of one width. Safe to use on several threads.

    Attributes:
        compressors: with their columns.
        width: of the latents.
        columns: that are made, in order.
    """

    compressors: tuple[ColumnCompressor, ...]
    width: int
    columns: tuple[MatrixColumn, ...]

    def encode(self, rows: Rows) -> Matrices:
        """Compress and encode one latent.

        Args:
            rows: `[L, H]` float32.

        Returns:
            A matrix for each of `columns`, in their order.

        Raises:
            NotStorableError: when a compressor fails, or the number format cannot hold a value.
        """
        made = {LATENT_COLUMN: rows}
        for entry in self.compressors:
            made |= entry.compress(rows)
        return {column.name: _encoded(column, made.get(column.name)) for column in self.columns}


def compressed_meaning(compressor: str, is_main: bool, width: int) -> str:
    """Say in the dataset card what a compressor's column is.

    Args:
        compressor: its name.
        is_main: whether the column holds the compressed rows.
        width: of the column.
    """
    what = "the compressed latent" if is_main else "what decompressing needs"
    return f"{what}, made by `{compressor}`: `[rows, {width}]`"


def _storage(dtype: NumberFormat, width: int) -> MatrixStorage:
    return MatrixStorage(dtype, width, DEFAULT_ROTATION if has_scales(dtype) else None)


def _encoded(column: MatrixColumn, matrix: Rows | None) -> EncodedRows:
    if matrix is None or matrix.shape[1] != column.storage.width:
        found = "absent" if matrix is None else f"{matrix.shape[1]} wide"
        raise NotStorableError(
            COMPRESSION_FAILED, f"{column.name} is {found}, not {column.storage.width} wide"
        )
    try:
        return column.storage.encode(matrix)
    except NumberFormatError as error:
        raise NotStorableError(NUMBER_FORMAT, f"{column.name}: {error}") from error


def named_columns(
    compressors: Sequence[Compressor], taken: Collection[str] = ()
) -> tuple[ColumnCompressor, ...]:
    """Give each compressor a column.

    One compressor fills `hidden_state_comp`. Of several, each fills `hidden_state_comp_NAME`; those
    of one name fill `hidden_state_comp_NAME-K`.

    Args:
        compressors: in the order of the columns.
        taken: columns that exist. Where `hidden_state_comp` does, one compressor is named as if
            there were several.

    Raises:
        CompressorError: when two of them have the same name and k, or a column exists.
    """
    if len(compressors) == 1 and COMPRESSED not in taken:
        return (ColumnCompressor(COMPRESSED, compressors[0]),)
    counts = Counter(compressor.name for compressor in compressors)
    named: dict[str, ColumnCompressor] = {}
    for compressor in compressors:
        name = compressor.name
        suffix = name if counts[name] == 1 else f"{name}-{compressor.k}"
        column = f"{COMPRESSED}_{suffix}"
        if column in named:
            raise CompressorError(f"{name} is given twice with the same k")
        if column in taken:
            raise CompressorError(f"the dataset already has a column {column}")
        named[column] = ColumnCompressor(column, compressor)
    return tuple(named.values())
