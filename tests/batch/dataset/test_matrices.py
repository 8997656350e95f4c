"""Batches with several matrix columns, in every number format."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, encode_rows, has_scales
from latentwire.storage import MatrixStorage
from latentwire_batch.dataset.manifest import storage_json
from latentwire_batch.dataset.matrices import MatrixBuffer, MatrixColumn, Shape
from latentwire_batch.dataset.schema import BatchBuilder, DatasetSchema
from latentwire_batch.dataset.stored_matrix import stored_matrix
from latentwire_batch.tasks.results import RowText

TEXT = RowText("task", "id", "plan")


def column(name: str, dtype: NumberFormat, width: int) -> MatrixColumn:
    return MatrixColumn(name, MatrixStorage(dtype, width, 0 if has_scales(dtype) else None))


def declared(matrices: tuple[MatrixColumn, ...]) -> pa.Schema:
    return DatasetSchema(
        declaration=json.dumps({"storage": storage_json(matrices)}), matrices=matrices
    ).arrow


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=12),
    st.sampled_from(NUMBER_FORMATS),
    st.sampled_from(NUMBER_FORMATS),
    st.integers(1, 9),
    st.sampled_from([1, 64, 1 << 16]),
)
def test_what_is_filled_in_is_what_is_read(
    sizes: list[tuple[int, int]],
    first: NumberFormat,
    second: NumberFormat,
    width: int,
    max_bytes: int,
) -> None:
    rng = np.random.default_rng(len(sizes))
    matrices = (column("a", first, width), column("b", second, 7), MatrixColumn("c"))
    builder = BatchBuilder(max_bytes, DatasetSchema(matrices=matrices))
    expected: list[list[Any]] = []
    for rows, further in sizes:
        given_rows = [
            rng.standard_normal((rows, width), np.float32),
            rng.standard_normal((further, 7), np.float32),
            # Each row of the dataset has a width of its own.
            rng.standard_normal((1, rows), np.float32),
        ]
        encoded = [
            matrix.storage.encode(part) for matrix, part in zip(matrices, given_rows, strict=True)
        ]
        places = builder.add(TEXT, [Shape(len(e.values), e.width) for e in encoded])
        for place, part in zip(places, encoded, strict=True):
            place.fill(part)
        expected.append(encoded)
    batch = builder.finish()
    batch.validate(full=True)
    schema = declared(matrices)
    for position, encoded in enumerate(expected):
        for matrix, part in zip(matrices, encoded, strict=True):
            found = stored_matrix(schema, matrix.name).at(batch, position)
            assert found is not None
            assert found.values.tobytes() == part.values.tobytes()
            assert len(found.values) == len(part.values)
            assert found.rotation == part.rotation
            if len(part.values):
                assert found.width == part.width
            if part.scales is not None and found.scales is not None:
                np.testing.assert_array_equal(found.scales, part.scales)


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_a_batch_is_full_at_the_bytes_of_its_number_format(dtype: NumberFormat) -> None:
    schema = DatasetSchema(matrices=(column("a", dtype, 100),))
    row_bytes = encode_rows(np.zeros((1, 100), np.float32), dtype).nbytes
    builder = BatchBuilder(row_bytes * 10 + 100, schema)
    builder.add(TEXT, [Shape(1, 100)])
    assert builder.has_room(TEXT, [Shape(9, 100)])
    assert not builder.has_room(TEXT, [Shape(11, 100)])


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_values_are_not_copied(dtype: NumberFormat) -> None:
    buffer = MatrixBuffer(column("a", dtype, 6), 1 << 12)
    place = buffer.add(Shape(3, 6))
    values = buffer.arrays()[0].values.values
    assert values.buffers()[1].address == place.values.ctypes.data


def test_offsets_never_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire_batch.dataset.schema.MAX_BATCH_VALUES", 100)
    schema = DatasetSchema(matrices=(column("a", "int4", 20), column("b", "float32", 10)))
    builder = BatchBuilder(1 << 20, schema)
    builder.add(TEXT, [Shape(2, 20), Shape(9, 10)])
    assert builder.has_room(TEXT, [Shape(8, 20), Shape(1, 10)])
    assert not builder.has_room(TEXT, [Shape(1, 20), Shape(2, 10)])
    assert not builder.has_room(TEXT, [Shape(9, 20), Shape(0, 10)])
    with pytest.raises(ValueError, match="11 rows"):
        BatchBuilder(1 << 20, schema).add(TEXT, [Shape(0, 20), Shape(11, 10)])
