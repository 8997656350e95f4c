"""Which files a dataset consists of, in every layout, and reading them as one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentwire
from latentwire.errors import DatasetError
from latentwire_batch.dataset.files import locate, locate_one_split
from latentwire_batch.dataset.reader import dataset_bytes, stored_rows
from latentwire_batch.errors import InputError
from latentwire_batch.inspection.command import main as inspect
from latentwire_service.engine.seams.bridge import BridgeError
from latentwire_service.fitting.samples import Dataset

# In the order of the input, which is neither that of the alphabet nor the usual one.
SIZES = {"test": (2, 3), "train": (4,), "extra.v2": (1,)}
NAMES = [f"{split}{row}" for split, sizes in SIZES.items() for row in range(sum(sizes))]


def table(names: list[str]) -> pa.Table:
    latents = [np.full((2, 3), len(name), np.float32).tolist() for name in names]
    kind = pa.list_(pa.list_(pa.float32()))
    columns = {"task": names, "task_id": names, "plan": names}
    return pa.table({**columns, "hidden_state": pa.array(latents, kind)})


def files_of(split: str, sizes: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    start = 0
    for index, size in enumerate(sizes):
        names = [f"{split}{row}" for row in range(start, start + size)]
        yield f"{split}-{index:05d}-of-{len(sizes):05d}.parquet", names
        start += size


@pytest.fixture
def output(tmp_path: Path) -> Path:
    data = tmp_path / "out" / "data"
    data.mkdir(parents=True)
    for split, sizes in SIZES.items():
        for name, rows in files_of(split, sizes):
            pq.write_table(table(rows), data / name)
    (data / "notes.parquet").write_text("a person's own file")
    splits = {split: sum(sizes) for split, sizes in SIZES.items()}
    ranges = [{"name": name, "num_rows": rows + 1} for name, rows in splits.items()]
    manifest = {"splits": splits, "settings": {"splits": ranges}}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    # The last row of each split failed: rows 5, 10 and 12 of the input.
    failures = "".join(json.dumps({"row": row}) + "\n" for row in (5, 10, 12))
    (tmp_path / "out" / "failures.jsonl").write_text(failures)
    return tmp_path / "out"


def test_rows_of_all_splits_follow_in_the_order_of_the_manifest(output: Path) -> None:
    files = locate(output)
    assert files.splits == ("test", "train", "extra.v2")
    assert [row.text.task_id for row in stored_rows(files)] == NAMES
    assert [(name, part.num_rows()) for name, part in files.by_split()] == [
        (name, sum(sizes)) for name, sizes in SIZES.items()
    ]
    sizes = [path.stat().st_size for path in (output / "data").glob("*-of-*")]
    assert dataset_bytes(files) == sum(sizes)


def test_without_a_manifest_the_usual_splits_come_first(output: Path) -> None:
    (output / "manifest.json").unlink()
    assert locate(output / "data").splits == ("train", "test", "extra.v2")


def test_load_reads_by_index_across_files(output: Path) -> None:
    dataset = latentwire.load(output)
    assert dataset.splits == ("test", "train", "extra.v2")
    assert [row.task_id for row in dataset] == NAMES
    assert [dataset[index].task_id for index in range(len(dataset))] == NAMES
    assert dataset[-1].task_id == "extra.v20"
    # The second file of the first split.
    assert [row.task_id for row in dataset[3:6]] == ["test3", "test4", "train0"]
    latent = dataset[7].hidden_state
    assert latent is not None
    np.testing.assert_array_equal(latent, np.full((2, 3), 6, np.float32))


def test_load_reads_one_split(output: Path) -> None:
    dataset = latentwire.load(output, split="train")
    assert [row.task_id for row in dataset] == [f"train{row}" for row in range(4)]
    assert pickle.loads(pickle.dumps(dataset))[0].task_id == "train0"
    with pytest.raises(DatasetError, match="no split 'dev'; it has test, train, extra.v2$"):
        latentwire.load(output, split="dev")


def test_a_classic_dataset_has_no_splits(tmp_path: Path) -> None:
    pq.write_table(table(["a"]), tmp_path / "data.parquet")
    assert latentwire.load(tmp_path).splits == ()
    with pytest.raises(DatasetError, match="has no split 'test'; its files name none"):
        latentwire.load(tmp_path, split="test")


def test_commands_for_one_split_need_its_name(output: Path) -> None:
    assert locate_one_split(output, "test").splits == ("test",)
    with pytest.raises(InputError, match="--split names one of: test, train, extra.v2"):
        locate_one_split(output, None)
    assert [sample.task_id for sample in Dataset.from_path(output, "test").samples()] == NAMES[:5]
    with pytest.raises(BridgeError, match="has several splits") as caught:
        Dataset.from_path(output)
    assert caught.value.hint == "--split names one of: train, test, extra.v2"
    with pytest.raises(BridgeError, match="--split: no split 'dev'"):
        Dataset.from_path(output, "dev")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test-00001-of-00002.parquet", "holds 1 of the 2 files of the split test"),
        ("test-00000-of-00002.parquet", "holds 1 of the 2 files of the split test"),
    ],
)
def test_a_split_with_a_missing_file_is_refused(name: str, message: str, output: Path) -> None:
    (output / "data" / name).unlink()
    with pytest.raises(InputError, match=message):
        locate(output)
    with pytest.raises(BridgeError, match=message):
        Dataset.from_path(output, "train")


def test_files_of_two_runs_are_refused(output: Path) -> None:
    pq.write_table(table(["x"]), output / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="holds 2 of the 1 and 2 files of the split test"):
        locate(output)


def test_inspect_shows_the_rows_of_each_split(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect([str(output)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "split test 5 rows" in shown
    assert "split extra.v2 1 rows" in shown
    assert "3 of 13 rows are missing" in shown
    assert inspect([str(output), "--split", "test"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 6 rows are missing" in shown
    assert inspect([str(output), "--split", "dev"]) == 2
    assert "no split 'dev'" in capsys.readouterr().err
