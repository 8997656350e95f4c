"""Reads matrices of stored datasets with the usual readers, without this project's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from support.batch.collecting import Ended

Rows = npt.NDArray[np.float32]
Compress = Callable[..., Ended]


def matrices(table: pa.Table, column: str, width: int) -> list[Rows]:
    """The float32 matrices of one column."""
    values = table[column].to_pylist()
    return [np.array(value, dtype=np.float32).reshape(-1, width) for value in values]


def read_both(output: Path) -> pa.Table:
    """The table of `data.parquet`, which `hf_dataset` must agree with."""
    table = pq.read_table(output / "data.parquet")
    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert saved.column_names == table.column_names
    assert table.cast(saved.data.schema).equals(saved.data.table.combine_chunks())
    return table
