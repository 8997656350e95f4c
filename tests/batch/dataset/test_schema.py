from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest

from latentwire_batch.dataset.matrices import Shape
from latentwire_batch.dataset.schema import (
    COLUMNS,
    LATENT_COLUMN,
    SCHEMA,
    TEXT_COLUMNS,
    BatchBuilder,
)
from latentwire_batch.dispatch.seeds import row_seed
from latentwire_batch.tasks.results import RowText

TEXT = RowText("task", "id", "plan")


def test_every_description_of_the_dataset_has_the_same_columns() -> None:
    assert [field.name for field in dataclasses.fields(RowText)] == list(TEXT_COLUMNS)
    assert SCHEMA.names == [*TEXT_COLUMNS, LATENT_COLUMN]
    features = datasets.Features.from_dict({column.name: column.feature for column in COLUMNS})
    assert features.arrow_schema.remove_metadata() == SCHEMA


def test_a_batch_holds_the_rows_that_were_filled_in() -> None:
    builder = BatchBuilder(max_bytes=1 << 10)
    latents = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) + n for n in (2, 0, 5)]
    for latent in latents:
        builder.add(TEXT, [Shape(*latent.shape)])[0].values[:] = latent
    batch = builder.finish()
    batch.validate(full=True)
    assert batch.schema == SCHEMA
    assert batch.column("hidden_state").to_pylist() == [latent.tolist() for latent in latents]
    assert builder.is_empty


def test_floats_are_not_copied() -> None:
    builder = BatchBuilder(max_bytes=1 << 10)
    view = builder.add(TEXT, [Shape(3, 4)])[0].values
    view[:] = 1
    values = builder.finish().column("hidden_state").values.values
    assert values.buffers()[1].address == view.ctypes.data


def test_a_batch_is_full_at_its_bytes_but_takes_any_first_row() -> None:
    builder = BatchBuilder(max_bytes=64)
    assert builder.has_room(TEXT, [Shape(1000, 4)])
    builder.add(TEXT, [Shape(1000, 4)])[0].values[:] = 0
    assert not builder.has_room(TEXT, [Shape(1, 4)])
    assert builder.finish().column("hidden_state")[0].values.values.null_count == 0
    builder.add(TEXT, [Shape(1, 4)])
    assert builder.has_room(TEXT, [Shape(1, 4)])
    assert not builder.has_room(TEXT, [Shape(3, 4)])
    assert not builder.has_room(RowText("t" * 40, "", ""), [Shape(1, 4)])


def test_offsets_never_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire_batch.dataset.schema.MAX_BATCH_VALUES", 100)
    builder = BatchBuilder(max_bytes=1 << 20)
    builder.add(TEXT, [Shape(9, 10)])
    assert not builder.has_room(TEXT, [Shape(2, 10)])
    with pytest.raises(ValueError, match="11 rows"):
        BatchBuilder().add(TEXT, [Shape(11, 10)])


def test_row_seeds_are_a_fixed_function() -> None:
    # Changing these numbers would change every dataset made from a given --seed.
    assert [row_seed(0, 0, 63), row_seed(0, 1, 63), row_seed(7, 0, 63)] == [
        1041621211125469266,
        8118103383084794603,
        4212276270495803956,
    ]
    assert row_seed(7, 0) == 4212276270495803956 % 2**53
    assert all(0 <= row_seed(2**63 - 1, i) < 2**53 for i in range(1000))
    assert len({row_seed(3, i) for i in range(1000)}) == 1000
