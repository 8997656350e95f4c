from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.errors import InputError
from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields

FIELDS = RowFields(task_field="task", conversations_index=None, id_field="id")


def tasks(path: Path) -> list[str]:
    return [row.task for row in TaskSource(path, FIELDS).rows()]


def part(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"task": list(texts)}), path)


@pytest.mark.parametrize(
    "names",
    [
        ["data.parquet"],
        [
            "train-00000-of-00003.parquet",
            "train-00001-of-00003.parquet",
            "train-00002-of-00003.parquet",
        ],
        ["0000.parquet", "0001.parquet"],
        ["part-2.parquet", "part-10.parquet"],
        ["part-00000-c1.snappy.parquet", "part-00001-c1.snappy.parquet"],
    ],
)
def test_the_parts_of_one_parquet_dataset_are_read_in_order(
    names: list[str], tmp_path: Path
) -> None:
    for name in reversed(names):
        part(tmp_path / name, f"a {name}", f"b {name}")
    (tmp_path / "README.md").write_text("a card")
    assert tasks(tmp_path) == [f"{row} {name}" for name in names for row in "ab"]


def test_a_dataset_of_one_split_is_read(tmp_path: Path) -> None:
    split = datasets.Dataset.from_list([{"task": "first"}, {"task": "second"}])
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "d"))
    assert tasks(tmp_path / "d") == ["first", "second"]


def several_splits(path: Path) -> None:
    part(path / "train-00000-of-00001.parquet", "a")
    part(path / "test-00000-of-00001.parquet", "b")


def missing_part(path: Path) -> None:
    part(path / "train-00000-of-00002.parquet", "a")


def hub_layout(path: Path) -> None:
    part(path / "data" / "train-00000-of-00001.parquet", "a")
    part(path / "other" / "train-00000-of-00001.parquet", "a")


def loose_files(path: Path) -> None:
    (path / "tasks.jsonl").write_text('{"task": "a"}')
    (path / "notes.txt").write_text("")


def nothing(path: Path) -> None:
    (path / "folder").mkdir()


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (several_splits, "pass one of: test-00000-of-00001.parquet, train-00000-of-00001.parquet"),
        (missing_part, "holds 1 of the 2 parts"),
        (hub_layout, "pass one of: data, other"),
        (loose_files, "pass one of its files: notes.txt, tasks.jsonl"),
        (nothing, "it holds no file"),
    ],
)
def test_a_refused_folder_is_answered_with_a_reason(
    fill: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    fill(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        tasks(tmp_path)
    assert str(tmp_path) not in str(caught.value)
