"""Rows of a stored dataset, streamed: any Parquet file or `save_to_disk` directory of our schema.

Takes lists of every Arrow kind, so it also reads files that other tools have rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentwire_batch.dataset.schema import DECLARATION_KEY, LATENT_COLUMN, TEXT_COLUMNS
from latentwire_batch.errors import InputError
from latentwire_batch.output.layout import DATA_NAME, HF_DATASET_NAME
from latentwire_batch.tasks.arrow_files import (
    STATE_NAME,
    arrow_schema,
    input_errors,
    record_batches,
)
from latentwire_batch.tasks.results import RowText

# Rows decoded together; one latent of [2048, 4096] takes 32 MiB.
_BATCH_ROWS = 16


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


def locate(path: Path) -> Path:
    """Find the dataset in an output directory; return other paths unchanged.

    Raises:
        InputError: when there is none.
    """
    if not path.exists():
        raise InputError("no such file or directory")
    if path.is_file() or (path / STATE_NAME).is_file():
        return path
    for name in (DATA_NAME, HF_DATASET_NAME):
        if (path / name).exists():
            return path / name
    raise InputError("holds neither data.parquet nor hf_dataset")


def stored_rows(path: Path, extras: Sequence[str] = ()) -> Iterator[StoredRow]:
    """Yield the rows of a Parquet file or a `save_to_disk` directory in order.

    Args:
        path: as returned by `locate`.
        extras: names of further columns to read.

    Raises:
        InputError: when it cannot be read, or has another schema.
    """

    def columns(schema: pa.Schema) -> list[str]:
        missing = [name for name in extras if name not in schema.names]
        if missing:
            raise InputError(f"has no column {missing[0]}")
        return [*_columns(schema), *extras]

    with input_errors():
        try:
            for batch in record_batches(path, columns, _BATCH_ROWS):
                yield from _rows(batch, extras)
        except (ValueError, LookupError) as error:
            raise InputError(f"cannot be decoded: {error}") from error


def stored_declaration(path: Path) -> dict[str, Any] | None:
    """Return what the files' own metadata says about how they were made; None when nothing.

    Args:
        path: as returned by `locate`.

    Raises:
        InputError: when it cannot be read.
    """
    with input_errors():
        text = (arrow_schema(path).metadata or {}).get(DECLARATION_KEY)
    try:
        value = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def dataset_bytes(path: Path) -> int:
    """Return the size on disk of what `locate` found, in bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _columns(schema: pa.Schema) -> list[str]:
    if LATENT_COLUMN not in schema.names:
        raise InputError(f"has no column {LATENT_COLUMN}")
    kind = schema.field(LATENT_COLUMN).type
    if not (_is_list(kind) and _is_list(kind.value_type)):
        raise InputError(f"column {LATENT_COLUMN} is not a list of lists of numbers")
    number = kind.value_type.value_type
    if not pa.types.is_floating(number):
        raise InputError(f"column {LATENT_COLUMN} holds {number}, not floating-point numbers")
    return [name for name in (*TEXT_COLUMNS, LATENT_COLUMN) if name in schema.names]


def _is_list(kind: pa.DataType) -> bool:
    is_kind = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_kind)


def _rows(batch: pa.RecordBatch, extras: Sequence[str]) -> Iterator[StoredRow]:
    latents = batch.column(LATENT_COLUMN)
    for position in range(batch.num_rows):
        # A slice of one row: its values are views of the batch's, nothing is decoded twice.
        rows = latents.slice(position, 1).flatten()
        lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
        values = rows.flatten()
        is_ragged = len(lengths) > 1 or values.null_count > 0
        matrix = np.empty((0, 0), dtype=np.float32)
        if not is_ragged and len(lengths):
            flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            matrix = flat.reshape(len(rows), int(lengths[0]))
        text = RowText(**{name: _text(batch, name, position) for name in TEXT_COLUMNS})
        further = {name: batch.column(name)[position].as_py() for name in extras}
        yield StoredRow(text, matrix, is_ragged, further)


def _text(batch: pa.RecordBatch, name: str, position: int) -> str:
    if name not in batch.schema.names:
        return ""
    value = batch.column(name)[position].as_py()
    return "" if value is None else str(value)
