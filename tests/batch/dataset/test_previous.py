from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latentwire_batch.dataset.previous import previous_rows
from latentwire_batch.dataset.schema import BatchBuilder
from latentwire_batch.dataset.writers import HfDatasetSink
from latentwire_batch.errors import StorageError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.tasks.results import RowText


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """A finished `hf_dataset` of latents of width 3, one of them empty."""
    builder = BatchBuilder(width=3)
    for length in (2, 0, 40):
        builder.add(RowText(f"task {length}", f"id {length}", "plan"), length)[:] = length
    layout = OutputLayout(tmp_path)
    sink = HfDatasetSink(layout.hf_dataset, max_shard_bytes=1 << 20)
    sink.write(builder.finish())
    sink.close()
    return layout


def test_rows_come_back_as_they_were_written(layout: OutputLayout) -> None:
    rows = list(previous_rows(layout, width=3))
    assert [row.text.task_id for row in rows] == ["id 2", "id 0", "id 40"]
    assert [row.latent.shape for row in rows] == [(2, 3), (0, 3), (40, 3)]
    assert all(
        np.array_equal(row.latent, np.full_like(row.latent, n))
        for row, n in zip(rows, (2, 0, 40), strict=True)
    )


def test_latents_are_views_of_the_file(layout: OutputLayout) -> None:
    rows = list(previous_rows(layout, width=3))
    assert not rows[2].latent.flags.owndata
    assert not rows[2].latent.flags.writeable


def test_latents_of_another_width_are_refused(layout: OutputLayout) -> None:
    with pytest.raises(StorageError, match="another width"):
        list(previous_rows(layout, width=6))


def test_a_damaged_output_is_refused(layout: OutputLayout) -> None:
    (layout.hf_dataset / "state.json").write_text("{")
    with pytest.raises(StorageError, match="hf_dataset cannot be read"):
        list(previous_rows(layout, width=3))
