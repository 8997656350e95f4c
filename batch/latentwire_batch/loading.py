"""`latentwire_batch.load`: a stored dataset with rows by index, in float32.

Arrow files of a directory stay memory-mapped; of a Parquet file, the row group read last is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from os import PathLike, fspath
from typing import Any, overload

import pyarrow as pa

from latentwire.errors import DatasetError
from latentwire.number_formats import EncodedRows
from latentwire.storage import scale_column
from latentwire.stored_dataset import LatentRow
from latentwire_batch.dataset.files import locate
from latentwire_batch.dataset.reader import EncodedRow, encoded_rows, rows_of_batch
from latentwire_batch.dataset.schema import TEXT_COLUMNS
from latentwire_batch.dataset.stored_matrix import (
    StoredMatrix,
    declaration_of,
    matrix_names,
    stored_matrix,
)
from latentwire_batch.errors import InputError
from latentwire_batch.locations import Place, RemotePath, place_of
from latentwire_batch.tasks.arrow_files import BatchSource, input_errors


def load(
    path: str | PathLike[str] | RemotePath,
    columns: Sequence[str] | None = None,
    split: str | None = None,
) -> StoredDataset:
    """Open a stored dataset; see `latentwire.load`.

    Raises:
        DatasetError: when it cannot be read.
    """
    place = path if isinstance(path, RemotePath) else place_of(fspath(path))
    return StoredDataset(place, None if columns is None else tuple(columns), split)


class StoredDataset:
    """A dataset on disk: an implementation of `latentwire.stored_dataset.LatentDataset`.

    Args:
        path: see `latentwire.load`.
        columns: matrix columns to read; None: all.
        split: the only one to read; None: all.

    Raises:
        DatasetError: when it cannot be read.
    """

    def __init__(
        self, path: Place, columns: tuple[str, ...] | None, split: str | None = None
    ) -> None:
        self._given = (path, columns, split)
        try:
            # Of the two forms of a classic output, the one that can be mapped.
            self._files = locate(path, split, prefers_arrow=True)
            with input_errors():
                schema = self._files.schema
                names = matrix_names(schema) if columns is None else columns
                self._matrices = [stored_matrix(schema, name) for name in names]
                self._extras = _extras(schema)
                self._batches: BatchSource = self._files.open_batches(self._columns(schema))
        except InputError as error:
            raise DatasetError(f"{path.name}: {error}") from error
        self._ends = list(accumulate(self._batches.num_rows))
        self._declaration = declaration_of(schema) or {}

    @property
    def declaration(self) -> Mapping[str, Any]:
        """What the files say about how they were made; empty when they say nothing."""
        return self._declaration

    @property
    def matrices(self) -> tuple[StoredMatrix, ...]:
        """The matrix columns that are read, and how they are stored."""
        return tuple(self._matrices)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that are read, in the order of their rows; empty for none."""
        return self._files.splits

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> LatentRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[LatentRow]: ...
    def __getitem__(self, index: int | slice) -> LatentRow | list[LatentRow]:
        """Return one row, or a list of rows.

        Raises:
            IndexError: beyond the end.
            DatasetError: when a row cannot be read.
        """
        if isinstance(index, slice):
            return [self._row(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(place)

    def __iter__(self) -> Iterator[LatentRow]:
        """Yield the rows in order, a few at a time in memory; raises DatasetError."""
        names = [matrix.name for matrix in self._matrices]
        try:
            rows = encoded_rows(self._files, names, self._extras)
            for index, row in enumerate(rows):
                yield _latent_row(row, index)
        except InputError as error:
            raise self._error(error) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the files again in another process: loaders of torch send datasets to workers."""
        return load, self._given

    def _row(self, place: int) -> LatentRow:
        number = bisect_right(self._ends, place)
        first = self._ends[number - 1] if number else 0
        try:
            with input_errors():
                batch = self._batches.read(number).slice(place - first, 1)
                (row,) = rows_of_batch(batch, self._matrices, self._extras)
            return _latent_row(row, place)
        except (InputError, ValueError, LookupError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> DatasetError:
        return DatasetError(f"{self._given[0].name}: {error}")

    def _columns(self, schema: pa.Schema) -> list[str]:
        texts = [name for name in TEXT_COLUMNS if name in schema.names]
        stored = [name for matrix in self._matrices for name in matrix.names]
        return [*texts, *stored, *self._extras]


def _extras(schema: pa.Schema) -> list[str]:
    """Name the columns that are neither texts nor part of a matrix."""
    matrices = matrix_names(schema)
    known = {*TEXT_COLUMNS, *matrices, *(scale_column(name) for name in matrices)}
    return [name for name in schema.names if name not in known]


def _latent_row(row: EncodedRow, index: int) -> LatentRow:
    encoded: dict[str, EncodedRows] = {}
    for name, matrix in row.matrices.items():
        if matrix is None:
            raise InputError(f"row {index}: the rows of {name} differ in length, or hold nulls")
        encoded[name] = matrix
    text = row.text
    return LatentRow(text.task, text.task_id, text.plan, encoded, row.extras)
