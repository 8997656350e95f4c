"""Rows of a stored dataset, streamed: any Parquet file or `save_to_disk` directory of our schema.

Takes lists of every Arrow kind, so files that other tools have written again are read too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.errors import InputError
from latentwire_batch.output.layout import DATA_NAME, HF_DATASET_NAME

_TEXT_COLUMNS = ("task", "task_id", "plan")
_LATENT_COLUMN = "hidden_state"
# Rows decoded together; one row of [2048, 4096] has 32 MiB.
_BATCH_ROWS = 16
_READ_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class StoredLatent:
    """One row of a stored dataset.

    Attributes:
        task: its text; empty where the file has no such column, as the next two.
        task_id: its id.
        plan: the generated text.
        steps: `[num_steps, width]` float32; `[0, 0]` when ragged.
        is_ragged: whether its steps differ in length.
    """

    task: str
    task_id: str
    plan: str
    steps: npt.NDArray[np.float32]
    is_ragged: bool


def locate(path: Path) -> Path:
    """Find the dataset in an output directory; give other paths back.

    Raises:
        InputError: when there is none.
    """
    if not path.exists():
        raise InputError("no such file or directory")
    if path.is_file() or (path / "state.json").is_file():
        return path
    for name in (DATA_NAME, HF_DATASET_NAME):
        if (path / name).exists():
            return path / name
    raise InputError("holds neither data.parquet nor hf_dataset")


def stored_rows(path: Path) -> Iterator[StoredLatent]:
    """Yield the rows of a Parquet file or a `save_to_disk` directory in order.

    Args:
        path: as `locate` gives it.

    Raises:
        InputError: when it cannot be read, or has another schema.
    """
    try:
        for batch in _batches(path):
            yield from _rows(batch)
    except OSError as error:
        # Not `strerror`: libraries put the path into it.
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputError(f"cannot be read: {reason}") from error
    except (pa.ArrowException, ValueError, LookupError) as error:
        raise InputError(f"cannot be decoded: {error}") from error


def dataset_bytes(path: Path) -> int:
    """Give the size on the disk of what `locate` found, in bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.is_file():
        # Page by page: other writers make row groups larger than the memory.
        with pq.ParquetFile(path, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=_columns(file.schema_arrow))
        return
    state = json.loads((path / "state.json").read_text())
    for shard in state["_data_files"]:
        name = str(path / shard["filename"])
        with pa.memory_map(name) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield batch.select(_columns(batch.schema))


def _columns(schema: pa.Schema) -> list[str]:
    if _LATENT_COLUMN not in schema.names:
        raise InputError(f"has no column {_LATENT_COLUMN}")
    kind = schema.field(_LATENT_COLUMN).type
    if not (_is_list(kind) and _is_list(kind.value_type)):
        raise InputError(f"column {_LATENT_COLUMN} is not a list of lists of numbers")
    number = kind.value_type.value_type
    if not pa.types.is_floating(number):
        raise InputError(f"column {_LATENT_COLUMN} holds {number}, not floating-point numbers")
    return [name for name in (*_TEXT_COLUMNS, _LATENT_COLUMN) if name in schema.names]


def _is_list(kind: pa.DataType) -> bool:
    is_kind = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in is_kind)


def _rows(batch: pa.RecordBatch) -> Iterator[StoredLatent]:
    latents = batch.column(_LATENT_COLUMN)
    for position in range(batch.num_rows):
        # A slice of one row: its values are views of the batch's, nothing is decoded twice.
        steps = latents.slice(position, 1).flatten()
        lengths = np.unique(steps.value_lengths().to_numpy(zero_copy_only=False))
        values = steps.flatten()
        is_ragged = len(lengths) > 1 or values.null_count > 0
        matrix = np.empty((0, 0), dtype=np.float32)
        if not is_ragged and len(lengths):
            width = int(lengths[0])
            flat = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            matrix = flat.reshape(len(steps), width)
        texts = {name: _text(batch, name, position) for name in _TEXT_COLUMNS}
        yield StoredLatent(**texts, steps=matrix, is_ragged=is_ragged)


def _text(batch: pa.RecordBatch, name: str, position: int) -> str:
    if name not in batch.schema.names:
        return ""
    value = batch.column(name)[position].as_py()
    return "" if value is None else str(value)
