"""Every common reader finds the same rows, and `[L, H]` for every latent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from latentwire_batch.dispatch.seeds import row_seed
from support.batch.collecting import Collect
from support.batch.dataset_oracle import tasks_of
from support.batch.stub_answers import latent, num_tokens, plan_text
from support.batch.stub_replica import StubReplica

COLUMNS = ["task", "task_id", "plan", "hidden_state"]
Rows = list[tuple[str, str, str, Any]]


def by_pyarrow(output: Path) -> Rows:
    table = pq.read_table(output / "data.parquet")
    return list(zip(*(table[name].to_pylist() for name in COLUMNS), strict=True))


def by_pandas(output: Path) -> Rows:
    frame = pd.read_parquet(output / "data.parquet")
    frame["hidden_state"] = frame["hidden_state"].map(lambda rows: np.stack(list(rows)))
    return list(frame[COLUMNS].itertuples(index=False, name=None))


def by_polars(output: Path) -> Rows:
    return pl.read_parquet(output / "data.parquet").select(COLUMNS).rows()


def by_duckdb(output: Path) -> Rows:
    file = output / "data.parquet"
    rows = duckdb.sql(f"SELECT {', '.join(COLUMNS)} FROM read_parquet('{file}')")
    assert rows is not None
    return rows.fetchall()


def by_datasets(output: Path) -> Rows:
    return rows_of(datasets.load_from_disk(str(output / "hf_dataset")))


def by_datasets_from_parquet(output: Path) -> Rows:
    file, cache = str(output / "data.parquet"), str(output / "cache")
    return rows_of(datasets.Dataset.from_parquet(file, cache_dir=cache))


def rows_of(dataset: Any) -> Rows:
    return [tuple(row[name] for name in COLUMNS) for row in dataset.with_format("numpy")]


READERS = [
    by_pyarrow,
    by_pandas,
    by_polars,
    by_duckdb,
    by_datasets,
    by_datasets_from_parquet,
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_every_reader_finds_the_same_rows(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    read: Callable[[Path], Rows],
) -> None:
    assert collect(replicas=[stub]).status == 0
    rows = read(output)
    assert len(rows) == len(tasks_of(tasks))
    for index, (task_id, task) in enumerate(tasks_of(tasks)):
        seed = row_seed(7, index)
        expected = latent(task, seed, num_tokens(task, seed, 12), 8)
        assert tuple(rows[index][:3]) == (task, task_id, plan_text(task, seed))
        found = np.array(rows[index][3], dtype=np.float32)
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)
