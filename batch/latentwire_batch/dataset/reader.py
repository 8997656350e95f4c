"""Rows of a stored dataset, streamed: Parquet files or a `save_to_disk` directory of our schema.

Takes lists of every Arrow kind, so it also reads files that other tools have rewritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire.number_formats import EncodedRows, decode_rows
from latentwire_batch.dataset.files import DatasetFiles
from latentwire_batch.dataset.schema import LATENT_COLUMN, TEXT_COLUMNS
from latentwire_batch.dataset.stored_matrix import (
    StoredMatrix,
    declaration_of,
    matrix_names,
    stored_matrix,
)
from latentwire_batch.errors import InputError
from latentwire_batch.tasks.arrow_files import input_errors
from latentwire_batch.tasks.results import RowText

# Rows decoded together; one latent of [2048, 4096] takes 32 MiB.
BATCH_ROWS = 16


@dataclass(frozen=True, eq=False)
class StoredRow:
    """One row of a stored dataset.

    Attributes:
        text: its text columns; a text is empty where the file has no such column.
        latent: `[num_hidden_rows, width]` float32, a view of the file's batch where the file holds
            float32; `[0, 0]` when ragged or empty.
        is_ragged: whether the rows of its latent differ in length, or hold nulls.
        extras: its values in further columns, by name.
    """

    text: RowText
    latent: npt.NDArray[np.float32]
    is_ragged: bool
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """One row of a stored dataset with its matrices as they are stored.

    Attributes:
        text: its text columns; a text is empty where the file has no such column.
        matrices: by column; None for a ragged one, whose rows differ in length, or hold nulls. The
            values are views of the file's batch where they need no conversion.
        extras: its values in further columns, by name.
    """

    text: RowText
    matrices: Mapping[str, EncodedRows | None]
    extras: Mapping[str, Any]

    def decoded(self, name: str) -> npt.NDArray[np.float32] | None:
        """Return a matrix as `[rows, width]` float32; None for a ragged one."""
        encoded = self.matrices[name]
        return None if encoded is None else decode_rows(encoded)


def stored_rows(
    files: DatasetFiles, extras: Sequence[str] = (), column: str = LATENT_COLUMN
) -> Iterator[StoredRow]:
    """Yield the rows of a dataset in order.

    Args:
        files: of the dataset.
        extras: names of further columns to read.
        column: of the matrices that are yielded as latents.

    Raises:
        InputError: when it cannot be read, or has another schema.
    """
    for row in encoded_rows(files, (column,), extras):
        latent = row.decoded(column)
        if latent is None:
            yield StoredRow(row.text, np.empty((0, 0), np.float32), True, row.extras)
        else:
            yield StoredRow(row.text, latent, False, row.extras)


def encoded_rows(
    files: DatasetFiles,
    matrices: Sequence[str],
    extras: Sequence[str] = (),
    max_rows: int = BATCH_ROWS,
) -> Iterator[EncodedRow]:
    """Yield the rows like `stored_rows`, with their matrices as they are stored.

    Args:
        files: of the dataset.
        matrices: names of the matrix columns to read.
        extras: names of further columns to read.
        max_rows: decoded together.

    Raises:
        InputError: when it cannot be read, or has another schema.
    """
    with input_errors():
        schema = files.schema
        columns = [stored_matrix(schema, name) for name in matrices]

        def choose(schema: pa.Schema) -> list[str]:
            texts = [name for name in TEXT_COLUMNS if name in schema.names]
            names = list(chain.from_iterable(column.names for column in columns))
            missing = [name for name in (*names, *extras) if name not in schema.names]
            if missing:
                raise InputError(f"has no column {missing[0]}")
            return [*texts, *names, *extras]

        try:
            for batch in files.batches(choose, max_rows):
                yield from rows_of_batch(batch, columns, extras)
        except (ValueError, LookupError) as error:
            raise InputError(f"cannot be decoded: {error}") from error


def stored_matrices(files: DatasetFiles) -> list[StoredMatrix]:
    """Return the matrix columns of a dataset, in their order.

    Args:
        files: of the dataset.

    Raises:
        InputError: when it cannot be read, or does not say how a column is stored.
    """
    with input_errors():
        schema = files.schema
    return [stored_matrix(schema, name) for name in matrix_names(schema)]


def stored_declaration(files: DatasetFiles) -> dict[str, Any] | None:
    """Return what the files' own metadata says about how they were made; None when nothing.

    Args:
        files: of the dataset.

    Raises:
        InputError: when it cannot be read.
    """
    with input_errors():
        return declaration_of(files.schema)


def dataset_bytes(files: DatasetFiles) -> int:
    """Return the size of a dataset's files on disk, in bytes."""
    return sum(file.stat().st_size for file in files.all_files())


def rows_of_batch(
    batch: pa.RecordBatch, matrices: Sequence[StoredMatrix], extras: Sequence[str]
) -> Iterator[EncodedRow]:
    """Yield the rows of a batch.

    Args:
        batch: has the columns of the matrices and the extras.
        matrices: to read.
        extras: names of further columns.

    Raises:
        ValueError, LookupError: when a matrix is not as it is declared.
    """
    for position in range(batch.num_rows):
        text = RowText(**{name: _text(batch, name, position) for name in TEXT_COLUMNS})
        encoded = {matrix.name: matrix.at(batch, position) for matrix in matrices}
        further = {name: batch.column(name)[position].as_py() for name in extras}
        yield EncodedRow(text, encoded, further)


def _text(batch: pa.RecordBatch, name: str, position: int) -> str:
    if name not in batch.schema.names:
        return ""
    value = batch.column(name)[position].as_py()
    return "" if value is None else str(value)
