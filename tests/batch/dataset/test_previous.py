from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.storage import MatrixStorage
from latentwire_batch.dataset.matrices import MatrixColumn, Shape
from latentwire_batch.dataset.previous import previous_rows
from latentwire_batch.dataset.reader import EncodedRow
from latentwire_batch.dataset.schema import BatchBuilder, latent_column
from latentwire_batch.dataset.writers import HfDatasetSink
from latentwire_batch.errors import StorageError
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.tasks.results import RowText


def of_width(width: int) -> list[MatrixColumn]:
    return [latent_column(MatrixStorage(width=width))]


def latent_of(row: EncodedRow) -> Any:
    return row.decoded("hidden_state")


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    """A finished `hf_dataset` of latents of width 3, one of them empty."""
    builder = BatchBuilder()
    for length in (2, 0, 40):
        text = RowText(f"task {length}", f"id {length}", "plan")
        builder.add(text, [Shape(length, 3)])[0].values[:] = length
    layout = OutputLayout(tmp_path)
    sink = HfDatasetSink(layout.hf_dataset, max_shard_bytes=1 << 20)
    sink.write(builder.finish())
    sink.close()
    return layout


def test_rows_come_back_as_they_were_written(layout: OutputLayout) -> None:
    rows = list(previous_rows(layout, of_width(3)))
    assert [row.text.task_id for row in rows] == ["id 2", "id 0", "id 40"]
    assert [latent_of(row).shape for row in rows] == [(2, 3), (0, 3), (40, 3)]
    assert all(
        np.array_equal(latent_of(row), np.full_like(latent_of(row), n))
        for row, n in zip(rows, (2, 0, 40), strict=True)
    )


def test_latents_are_views_of_the_file(layout: OutputLayout) -> None:
    rows = list(previous_rows(layout, of_width(3)))
    assert not latent_of(rows[2]).flags.owndata
    assert not latent_of(rows[2]).flags.writeable


def resident_file_bytes() -> int:
    """Return the bytes of mapped files that count as this process's."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(re.findall(r"^RssFile:\s+(\d+) kB$", status, re.MULTILINE)[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_mapped_file_are_given_back(tmp_path: Path) -> None:
    layout, num_rows = OutputLayout(tmp_path), 48
    sink = HfDatasetSink(layout.hf_dataset, max_shard_bytes=1 << 30)
    for row in range(num_rows):
        builder = BatchBuilder()
        place = builder.add(RowText("task", f"id {row}", "plan"), [Shape(256, 1024)])[0]
        place.values[:] = row
        sink.write(builder.finish())
    sink.close()
    before, most = resident_file_bytes(), 0
    means = []
    for found in previous_rows(layout, of_width(1024)):
        means.append(float(latent_of(found).mean()))
        most = max(most, resident_file_bytes() - before)
    assert means == list(range(num_rows))
    # Of 50 MB.
    assert most < 8 << 20


def test_latents_of_another_width_are_refused(layout: OutputLayout) -> None:
    with pytest.raises(StorageError, match="another width"):
        list(previous_rows(layout, of_width(6)))


def test_a_damaged_output_is_refused(layout: OutputLayout) -> None:
    (layout.hf_dataset / "state.json").write_text("{")
    with pytest.raises(StorageError, match="hf_dataset cannot be read"):
        list(previous_rows(layout, of_width(3)))
