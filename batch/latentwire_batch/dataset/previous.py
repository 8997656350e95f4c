"""The rows of a finished output, read in order, to be merged with rows that were retried."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from latentwire.number_formats import EncodedRows
from latentwire.split_files import DATA_DIRECTORY
from latentwire_batch.dataset.files import DatasetFiles, locate
from latentwire_batch.dataset.manifest import Manifest
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.dataset.reader import BATCH_ROWS, EncodedRow, encoded_rows
from latentwire_batch.errors import InputError, StorageError
from latentwire_batch.output.layout import HF_DATASET_NAME, OutputLayout


def finished_indices(manifest: Manifest, layout: OutputLayout) -> npt.NDArray[np.bool_]:
    """Return which input rows a finished output holds.

    Returns:
        `[num_rows]` bool, False for the rows that failed.

    Raises:
        StorageError: when the list of failures cannot be read.
    """
    finished = np.ones(manifest.settings.data.num_rows, dtype=np.bool_)
    if not manifest.counts.failed:
        return finished
    try:
        with layout.failures.open(encoding="utf-8") as file:
            for line in file:
                finished[json.loads(line)["row"]] = False
    except (OSError, ValueError, LookupError) as error:
        raise StorageError("the output's failures.jsonl cannot be read") from error
    return finished


def previous_rows(
    layout: OutputLayout, matrices: Sequence[MatrixColumn], extras: Sequence[str] = ()
) -> Iterator[EncodedRow]:
    """Yield the rows of a finished output in order, with their matrices as they are stored.

    Args:
        layout: of the output.
        matrices: the columns of matrices; those with a width must have it.
        extras: names of the added columns.

    Raises:
        StorageError: when its files cannot be read, or hold matrices of another width or format.
    """
    try:
        files = locate(layout.finished, prefers_arrow=True)
        yield from checked_rows(files, matrices, extras)
    except InputError as error:
        name = HF_DATASET_NAME if layout.hf_dataset.exists() else DATA_DIRECTORY
        raise StorageError(f"the output's {name} cannot be read") from error


def checked_rows(
    files: DatasetFiles,
    matrices: Sequence[MatrixColumn],
    extras: Sequence[str] = (),
    max_rows: int = BATCH_ROWS,
) -> Iterator[EncodedRow]:
    """Yield the rows of files like `previous_rows`.

    Args:
        files: in the order of the rows.
        matrices: see `previous_rows`.
        extras: names of the added columns.
        max_rows: decoded together.

    Raises:
        InputError: when the files cannot be read.
        StorageError: when they hold matrices of another width or format.
    """
    for row in encoded_rows(files, [matrix.name for matrix in matrices], extras, max_rows):
        found = {matrix.name: _checked(matrix, row) for matrix in matrices}
        yield replace(row, matrices=found)


def _checked(matrix: MatrixColumn, row: EncodedRow) -> EncodedRows:
    """Return a row's matrix; one without rows gets the width of the column."""
    encoded, storage = row.matrices[matrix.name], matrix.storage
    if encoded is None or encoded.format != storage.dtype:
        raise StorageError("the output holds matrices in another format")
    if not len(encoded.values) and storage.width is not None:
        values = encoded.values.reshape(0, storage.stored_width(storage.width))
        return replace(encoded, values=values, width=storage.width)
    if storage.width not in (None, encoded.width):
        raise StorageError("the output holds latents of another width")
    return encoded
