"""The columns of a merged dataset, as the shards' files and manifests describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from latentwire.storage import STORAGE, MatrixStorage
from latentwire_batch.compression.facts import COMPRESSORS
from latentwire_batch.compression.stored_form import compressed_meaning
from latentwire_batch.dataset.matrices import MatrixColumn
from latentwire_batch.dataset.reader import stored_matrices, stored_rows
from latentwire_batch.dataset.schema import LATENT_COLUMN, latent_column
from latentwire_batch.errors import InputError, StorageError
from latentwire_batch.shards.finished import FinishedShard
from latentwire_batch.shards.rows import row_files

# Latents are seldom empty.
_MAX_ROWS_FOR_WIDTH = 64


def matrix_columns(shards: Sequence[FinishedShard]) -> tuple[MatrixColumn, ...]:
    """Return the columns of matrices, which are those of every shard.

    Args:
        shards: of one collection.

    Raises:
        InputError: when the shards' files have different columns.
        StorageError: when a file cannot be read.
    """
    names = _names(shards[0])
    for shard in shards[1:]:
        if _names(shard) != names:
            raise InputError(
                f"shards {shards[0].shard} and {shard.shard} have different columns: "
                f"{', '.join(names)} and {', '.join(_names(shard))}"
            )
    return tuple(_column(shards, name) for name in names)


def _names(shard: FinishedShard) -> list[str]:
    try:
        return [matrix.name for matrix in stored_matrices(row_files(shard))]
    except InputError as error:
        raise StorageError(f"shard {shard.shard}: its dataset {error}") from error


def _column(shards: Sequence[FinishedShard], name: str) -> MatrixColumn:
    said = shards[0].said
    with shards[0].reading_manifest():
        stored = said.get(STORAGE, {}).get(name)
        storage = MatrixStorage() if stored is None else MatrixStorage.from_json(stored)
        compressors: Mapping[str, Mapping[str, Any]] = said.get(COMPRESSORS, {})
        names = {column: str(facts["name"]) for column, facts in compressors.items()}
    if name == LATENT_COLUMN:
        return latent_column(storage)
    width = storage.width if storage.width is not None else _width(shards, name)
    for column, compressor in names.items():
        if name == column or name.startswith(f"{column}__"):
            return MatrixColumn(
                name, storage, compressed_meaning(compressor, name == column, width)
            )
    return MatrixColumn(name, storage)


def _width(shards: Sequence[FinishedShard], name: str) -> int:
    """Return the width of a column whose storage does not state it: that of its first rows."""
    for shard in shards:
        rows = stored_rows(row_files(shard), column=name)
        for row in islice(rows, _MAX_ROWS_FOR_WIDTH):
            if len(row.latent):
                return int(row.latent.shape[1])
    return 0
