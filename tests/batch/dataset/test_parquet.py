"""The Parquet files of a dataset hold what Arrow would write into them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.number_formats import NumberFormat
from latentwire.storage import MatrixStorage
from latentwire_batch.dataset.matrices import VALUE_TYPES, MatrixColumn
from latentwire_batch.dataset.parquet import chunks
from latentwire_batch.dataset.parquet.chunks import Chunk
from latentwire_batch.dataset.parquet.thrift import (
    Elements,
    Kind,
    Value,
    decode_struct,
    encode_struct,
)
from latentwire_batch.dataset.schema import DatasetSchema
from latentwire_batch.dataset.writers import ParquetSink

FORMATS: list[NumberFormat] = ["float32", "bfloat16", "float16"]
# Of one matrix: rows and width.
REGULAR = [(2, 5), (1, 5), (7, 5), (1, 5)]


def column(dtype: NumberFormat) -> MatrixColumn:
    return MatrixColumn("a", MatrixStorage(dtype))


def values_of(rng: np.random.Generator, dtype: NumberFormat, width: int) -> Any:
    if dtype == "bfloat16":
        return rng.integers(0, 2**16, width).tolist()
    return rng.standard_normal(width).astype(np.float16).tolist()


def batch_of(dtype: NumberFormat, matrices: list[Any]) -> pa.RecordBatch:
    schema = DatasetSchema(("seed",), declaration='{"x": 1}', matrices=(column(dtype),)).arrow
    texts = [f"text {number}" for number in range(len(matrices))]
    array = pa.array(matrices, type=pa.list_(pa.list_(VALUE_TYPES[dtype])))
    seeds = pa.array(range(len(matrices)), type=pa.int64())
    return pa.RecordBatch.from_arrays([texts, texts, texts, array, seeds], schema=schema)


def matrices_of(
    sizes: list[tuple[int, int]], dtype: NumberFormat, seed: int = 0
) -> list[list[list[Any]]]:
    rng = np.random.default_rng(seed)
    return [[values_of(rng, dtype, width) for _ in range(rows)] for rows, width in sizes]


def written(path: Path, dtype: NumberFormat, batches: list[pa.RecordBatch]) -> Path:
    sink = ParquetSink(path, DatasetSchema(("seed",), '{"x": 1}', (column(dtype),)))
    for batch in batches:
        sink.write(batch)
    sink.close()
    return path


def is_encoded_here(dtype: NumberFormat, batch: pa.RecordBatch) -> bool:
    return Chunk.of(column(dtype), batch.schema.field("a"), batch.column("a")) is not None


def cells(dtype: NumberFormat, width: int) -> st.SearchStrategy[Any]:
    seeds = st.integers(0, 99)
    return seeds.map(lambda seed: values_of(np.random.default_rng(seed), dtype, width))


@st.composite
def any_batches(draw: st.DrawFn) -> tuple[NumberFormat, list[pa.RecordBatch], int]:
    """Regular matrices, and some with nulls, without rows, and with rows of other widths."""
    dtype = draw(st.sampled_from(FORMATS))
    width = draw(st.integers(1, 6))
    rows: st.SearchStrategy[Any] = st.lists(cells(dtype, width), min_size=1, max_size=6)
    if draw(st.booleans()):
        odd: st.SearchStrategy[Any] = st.sampled_from([None, [], [None], [[]], [[None]]])
        rows = rows | odd | st.lists(cells(dtype, width + 1), max_size=2)
    lists = draw(st.lists(st.lists(rows, min_size=1, max_size=5), max_size=3))
    batches = [batch_of(dtype, matrices) for matrices in lists]
    return dtype, [batch.slice(draw(st.integers(0, 1))) for batch in batches], width


@settings(max_examples=50)
@given(any_batches(), st.sampled_from([1, 50, 1 << 20]))
def test_what_is_written_is_read(
    drawn: tuple[NumberFormat, list[pa.RecordBatch], int], page_bytes: int
) -> None:
    dtype, batches, _ = drawn
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_PAGE_BYTES", page_bytes)
        # The disk is slower than all the rest.
        patch.setattr(os, "fsync", lambda *_: None)
        file = written(Path(folder) / "data.parquet", dtype, batches)
        found = pq.read_table(file)
    found.validate(full=True)
    schema = batch_of(dtype, []).schema
    assert found.schema.equals(schema)
    assert found.schema.metadata == schema.metadata
    assert found.equals(pa.Table.from_batches(batches, schema=schema))


@pytest.mark.parametrize("dtype", FORMATS)
def test_other_readers_find_values_that_span_pages(
    tmp_path: Path, dtype: NumberFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_PAGE_BYTES", 100)
    matrices = matrices_of([(1 + number % 9, 17) for number in range(40)], dtype)
    batches = [batch_of(dtype, matrices[:25]), batch_of(dtype, matrices[25:])]
    assert all(is_encoded_here(dtype, batch) for batch in batches)
    file = written(tmp_path / "data.parquet", dtype, batches)
    assert pl.read_parquet(file)["a"].to_list() == matrices
    rows = duckdb.sql(f"SELECT a FROM read_parquet('{file}')")
    assert rows is not None
    assert [row[0] for row in rows.fetchall()] == matrices
    assert pq.ParquetFile(file).read_row_group(1, columns=["a"])["a"].to_pylist() == matrices[25:]


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_file_describes_itself_as_arrow_does(tmp_path: Path, dtype: NumberFormat) -> None:
    batch = batch_of(dtype, matrices_of(REGULAR, dtype))
    assert is_encoded_here(dtype, batch)
    file = written(tmp_path / "data.parquet", dtype, [batch, batch])
    values = "a.list.element.list.element"
    split = [values] if dtype != "float16" else False
    options = {"use_dictionary": False, "use_byte_stream_split": split, "compression": "zstd"}
    pq.write_table(
        pa.Table.from_batches([batch, batch]),
        tmp_path / "arrow.parquet",
        write_statistics=["task", "task_id"],
        row_group_size=batch.num_rows,
        **options,
    )
    found = pq.ParquetFile(file).metadata
    expected = pq.ParquetFile(tmp_path / "arrow.parquet").metadata
    assert found.schema.equals(expected.schema)
    assert found.metadata == expected.metadata
    assert found.created_by == expected.created_by
    assert found.num_rows == expected.num_rows
    assert found.num_row_groups == expected.num_row_groups == 2
    for group in range(2):
        one, other = found.row_group(group).to_dict(), expected.row_group(group).to_dict()
        for mine, arrows in zip(one["columns"], other["columns"], strict=True):
            for known in ("physical_type", "path_in_schema", "num_values", "encodings"):
                assert mine[known] == arrows[known]
            assert mine["compression"] == arrows["compression"]
            assert mine["statistics"] == arrows["statistics"]
        assert one["total_byte_size"] == sum(c["total_uncompressed_size"] for c in one["columns"])


def test_an_irregular_column_is_left_to_arrow() -> None:
    irregular: list[list[Any]] = [
        [None, [[1.0]]],
        [[], [[1.0]]],
        [[[1.0], None]],
        [[[1.0], [1.0, 2.0]]],
        [[[1.0, None]]],
        [[[]]],
        [],
    ]
    assert not any(is_encoded_here("float32", batch_of("float32", m)) for m in irregular)
    assert is_encoded_here("float32", batch_of("float32", [[[1.0]], [[2.0], [3.0]]]))


def test_a_column_that_may_hold_no_nulls_is_left_to_arrow() -> None:
    inner = pa.field("item", pa.float32(), nullable=False)
    array = pa.array([[[1.0]]], pa.list_(pa.list_(inner)))
    assert Chunk.of(column("float32"), pa.field("a", array.type), array) is None
    array = pa.array([[[1.0]]], pa.list_(pa.list_(pa.float32())))
    assert Chunk.of(column("float32"), pa.field("a", array.type, nullable=False), array) is None
    assert Chunk.of(column("float32"), pa.field("a", array.type), array) is not None


def test_structures_are_written_as_they_were_read() -> None:
    fields = {
        1: Value(Kind.TRUE, True),
        2: Value(Kind.TRUE, False),
        20: Value(Kind.BYTE, -7),
        21: Value(Kind.I16, -300),
        500: Value(Kind.I64, 1 << 62),
        501: Value(Kind.I64, -(1 << 63)),
        502: Value(Kind.DOUBLE, 0.1),
        503: Value(Kind.LIST, Elements(Kind.TRUE, [True, False])),
        504: Value(Kind.SET, Elements(Kind.I32, list(range(-100, 100)))),
        505: Value(Kind.STRUCT, {3: Value(Kind.BINARY, b"x" * 200)}),
    }
    encoded = encode_struct(fields)
    assert decode_struct(encoded + b"what follows") == fields
    assert encode_struct({1: Value(Kind.STRUCT, encoded)}) == encode_struct(
        {1: Value(Kind.STRUCT, fields)}
    )


def test_arrows_footers_are_written_as_they_were_read() -> None:
    stream = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_batches([batch_of("float16", matrices_of(REGULAR, "float16"))]), stream
    )
    file = stream.getvalue().to_pybytes()
    footer = file[-8 - int.from_bytes(file[-8:-4], "little") : -8]
    assert encode_struct(decode_struct(footer)) == footer
