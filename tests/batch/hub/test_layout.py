"""`--layout hub`: files named after splits, which `datasets.load_dataset` finds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentwire
from latentwire.number_formats import NumberFormat
from latentwire_batch.dispatch.seeds import row_seed
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.publish import finish_install, install
from support.batch.collecting import Collect
from support.batch.stored_formats import decoded_by_the_card, kept_latents
from support.batch.stub_replica import StubReplica

HUB = ("--layout", "hub")
# Large enough for one latent, so that the files have one row or a few.
SMALL = ("--max-shard-size", "600")


def write(path: Path, *tasks: str) -> str:
    lines = (json.dumps({"id": f"id {task}", "task": task}) + "\n" for task in tasks)
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture
def loaded(tmp_path: Path, output: Path) -> Callable[..., Any]:
    """Read the output as users of the hub do, each time without what was read before."""
    numbers: Iterator[int] = iter(range(99))

    def load(split: str | None = None) -> Any:
        cache = tmp_path / f"cache{next(numbers)}"
        return datasets.load_dataset(str(output), split=split, cache_dir=str(cache))

    return load


def data_files(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "data").iterdir())


def manifest_of(output: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return value


def test_both_layouts_hold_the_same_rows(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path, loaded: Callable[..., Any]
) -> None:
    columns = ("--columns", "seed,token_ids")
    assert collect(*HUB, *SMALL, *columns, replicas=[stub]).status == 0
    classic = tmp_path / "classic"
    assert collect("--output-dir", str(classic), *columns, replicas=[stub]).status == 0
    expected = pq.read_table(classic / "data.parquet")
    files = data_files(output)
    assert len(files) > 5
    assert files[0] == f"train-00000-of-{len(files):05d}.parquet"
    tables = [pq.read_table(output / "data" / name) for name in files]
    # Each file also says by itself how it was made.
    assert all(b"latentwire" in table.schema.metadata for table in tables)
    assert pa.concat_tables(tables).replace_schema_metadata() == expected.replace_schema_metadata()
    values = [table["hidden_state"].combine_chunks().flatten().flatten() for table in tables]
    assert max(len(part) * 4 for part in values) <= 600
    found = loaded()
    assert list(found) == ["train"]
    assert found["train"].column_names == expected.column_names
    assert found["train"].to_dict() == expected.to_pydict()
    assert not (output / "hf_dataset").exists()
    assert not (output / "data.parquet").exists()


def test_a_plain_input_gives_the_split_that_is_named(
    collect: Collect, stub: StubReplica, output: Path, loaded: Callable[..., Any]
) -> None:
    assert collect(*HUB, "--split", "test", "--limit", "3", replicas=[stub]).status == 0
    assert data_files(output) == ["test-00000-of-00001.parquet"]
    assert list(loaded(split="test")["task_id"]) == ["t0", "t1", "t2"]
    manifest = manifest_of(output)
    assert (manifest["layout"], manifest["splits"]) == ("hub", {"test": 3})
    assert manifest["settings"]["splits"] == [{"name": "test", "num_rows": 3}]
    again = collect(*HUB, "--split", "test", "--limit", "3")
    assert (again.status, "nothing to do: all 3 rows" in again.stderr) == (0, True)
    other = collect(*HUB, "--limit", "3")
    assert other.status == 2
    assert "splits was [{'name': 'test', 'num_rows': 3}], now [{" in other.stderr
    classic = collect("--limit", "3")
    assert classic.status == 2
    assert "layout was 'hub', now 'classic'" in classic.stderr


def test_named_inputs_become_splits_in_their_order(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path, loaded: Callable[..., Any]
) -> None:
    inputs = {
        "validation": write(tmp_path / "v,1.jsonl", "a", "b"),
        "train": write(tmp_path / "t=2.jsonl", "c", "d", "e"),
        "test": write(tmp_path / "u.jsonl", "f"),
    }
    stub.behaviour.task_faults["d"] = [422]
    stub.behaviour.task_faults["f"] = [422]
    flags = [part for name, path in inputs.items() for part in ("--dataset", f"{name}={path}")]
    ended = collect(*HUB, "--columns", "seed", *flags, replicas=[stub])
    assert ended.status == 3
    assert manifest_of(output)["splits"] == {"validation": 2, "train": 2, "test": 0}
    # A list of failures is no data, and a split without rows has no file: readers fail with one.
    assert {name: list(rows["task"]) for name, rows in loaded().items()} == {
        "validation": ["a", "b"],
        "train": ["c", "e"],
    }
    failures = (output / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in failures] == [3, 5]
    assert [row.task for row in latentwire.load(output)] == ["a", "b", "c", "e"]
    # The index over all inputs decides the seed.
    assert list(loaded(split="train")["seed"]) == [row_seed(7, 2), row_seed(7, 4)]
    assert collect(*HUB, "--columns", "seed", *flags, "--retry-failed", replicas=[stub]).status == 0
    assert list(loaded(split="train")["task"]) == ["c", "d", "e"]
    assert list(loaded(split="test")["task"]) == ["f"]


def dataset_dict(path: Path) -> None:
    rows = {"train": ["a", "b"], "test": ["c"], "dev.v2": ["d"]}
    parts = {
        name: datasets.Dataset.from_list([{"task": task} for task in tasks])
        for name, tasks in rows.items()
    }
    datasets.DatasetDict(parts).save_to_disk(str(path))


def hub_files(path: Path) -> None:
    (path / "data").mkdir(parents=True)
    for name, tasks in {
        "train-00000-of-00002": ["a"],
        "train-00001-of-00002": ["b"],
        "test-00000-of-00001": ["c"],
        "dev.v2-00000-of-00001": ["d"],
    }.items():
        pq.write_table(pa.table({"task": tasks}), path / "data" / f"{name}.parquet")


@pytest.mark.parametrize("make", [dataset_dict, hub_files])
def test_the_splits_of_an_input_are_kept(
    make: Callable[[Path], None],
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tmp_path: Path,
    loaded: Callable[..., Any],
) -> None:
    source = str(tmp_path / "source")
    make(tmp_path / "source")
    assert collect(*HUB, "--dataset", source, replicas=[stub]).status == 0
    found = {name: list(rows["task"]) for name, rows in loaded().items()}
    assert found == {"train": ["a", "b"], "test": ["c"], "dev.v2": ["d"]}
    for flags in (("--dataset", source, "--split", "test"), ("--dataset", f"test={source}")):
        assert collect(*HUB, "--overwrite", *flags, replicas=[stub]).status == 0
        assert {name: list(rows["task"]) for name, rows in loaded().items()} == {"test": ["c"]}
        assert data_files(output) == ["test-00000-of-00001.parquet"]
    # Two names may read the same input, each its own split of it.
    flags = ("--dataset", f"test={source}", "--dataset", f"train={source}")
    assert collect(*HUB, "--overwrite", *flags, replicas=[stub]).status == 0
    assert manifest_of(output)["splits"] == {"test": 1, "train": 2}
    wrong = collect(*HUB, "--dataset", f"validation={source}")
    assert "validation= names no split of its input, which has train, test, dev.v2" in wrong.stderr
    classic = collect("--dataset", source)
    assert "--dataset: holds several splits; --split names one of: train, test" in classic.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "test=x.jsonl"), "--dataset: test= names a split, for --layout hub"),
        ((*HUB, "--dataset", "test=x.jsonl", "--split", "dev"), "--split: --dataset names the sp"),
        ((*HUB, "--split", "a-b"), "--split: the hub layout cannot name files after the split 'a-"),
        ((*HUB, "--split", "all"), "--split: the hub layout cannot name files after the split 'al"),
        (("--split", "test"), "with --layout hub, it names the split of any input"),
    ],
)
def test_splits_that_cannot_be_written_are_refused(
    flags: tuple[str, ...], message: str, collect: Collect
) -> None:
    ended = collect(*flags)
    assert ended.status == 2
    assert message in ended.stderr


def test_inputs_that_interrupt_a_split_are_refused(collect: Collect, tmp_path: Path) -> None:
    dataset_dict(tmp_path / "source")
    plain = write(tmp_path / "plain.jsonl", "x")
    ended = collect(*HUB, "--dataset", str(tmp_path / "source"), "--dataset", plain)
    assert ended.status == 2
    assert "--dataset: several inputs hold a split train, with another one between" in ended.stderr


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_number_formats_reach_readers_of_the_hub(
    dtype: NumberFormat,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    loaded: Callable[..., Any],
) -> None:
    assert collect(*HUB, "--storage-dtype", dtype, replicas=[stub]).status == 0
    rows = [row.hidden_state for row in latentwire.load(output, split="train")]
    for row, found, kept in zip(loaded("train"), rows, kept_latents(tasks, dtype), strict=True):
        np.testing.assert_allclose(decoded_by_the_card(output, row), kept, rtol=1e-6)
        np.testing.assert_array_equal(found, kept)


def test_the_card_reads_a_plain_dataset(
    collect: Collect, stub: StubReplica, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect(*HUB, "--split", "true", "--limit", "2", replicas=[stub]).status == 0
    card = (output / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(output)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", output.parent / "cache")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["dataset"][0]["task"].startswith("Clean window 0")


def test_files_of_an_earlier_run_with_another_number_are_removed(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, loaded: Callable[..., Any]
) -> None:
    first = json.loads(tasks.read_text().splitlines()[0])["task"]
    stub.behaviour.task_faults[first] = [422]
    assert collect(*HUB, *SMALL, "--limit", "9", replicas=[stub]).status == 3
    before = data_files(output)
    (output / "data" / "notes.txt").write_text("mine")
    (output / "data" / "other-00000-of-00001.parquet").write_text("mine")
    # Larger files do not make another dataset.
    assert collect(*HUB, "--limit", "9", "--retry-failed", replicas=[stub]).status == 0
    mine = ["notes.txt", "other-00000-of-00001.parquet"]
    assert data_files(output) == [*mine, "train-00000-of-00001.parquet"]
    assert len(before) > 2
    assert loaded("train").num_rows == 9
    # What is not ours stays, and keeps the directory.
    assert collect("--overwrite", "--limit", "2", replicas=[stub]).status == 0
    assert data_files(output) == mine
    assert (output / "data.parquet").exists()


def test_overwrite_removes_an_empty_data_directory(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect(*HUB, "--limit", "2", replicas=[stub]).status == 0
    assert collect("--overwrite", "--limit", "2", replicas=[stub]).status == 0
    assert not (output / "data").exists()


def test_data_without_a_manifest_is_refused(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    (output / "data").mkdir(parents=True)
    foreign = output / "data" / "train-00000-of-00007.parquet"
    foreign.write_text("someone's")
    ended = collect(*HUB, "--limit", "2", replicas=[stub])
    assert ended.status == 2
    assert "holds a dataset without a manifest; --overwrite replaces it" in ended.stderr
    # Other splits are nobody's business.
    assert collect(*HUB, "--split", "test", "--limit", "2", replicas=[stub]).status == 0
    assert foreign.exists()
    assert collect(*HUB, "--limit", "2", "--overwrite", replicas=[stub]).status == 0
    assert data_files(output) == ["train-00000-of-00001.parquet"]


def test_data_that_is_a_file_is_refused_before_anything_is_sent(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    output.mkdir()
    (output / "data").write_text("mine")
    ended = collect(*HUB, replicas=[stub])
    assert (ended.status, stub.received) == (2, [])
    assert "--output-dir: its data is not a directory" in ended.stderr


@pytest.mark.parametrize("num_moved", range(4))
def test_an_installation_that_was_cut_short_is_completed(num_moved: int, tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    (layout.staging / "data").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    layout.manifest.write_text('{"splits": {"train": 3}}')
    for index in range(3):
        (tmp_path / "data" / f"train-0000{index}-of-00003.parquet").write_text("old")
    new = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    for name in (*new, "manifest.json"):
        (layout.staging / name).write_text("new")

    renames = 0

    class CutShortError(Exception):
        pass

    def replace(source: Any, target: Any) -> None:
        nonlocal renames
        if layout.staging in Path(source).parents:
            if renames == num_moved:
                raise CutShortError
            renames += 1
        os.rename(source, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latentwire_batch.output.publish.os.replace", replace)
        try:
            install(layout)
        except CutShortError:
            assert num_moved < 3
            finish_after = True
        else:
            finish_after = False
    if finish_after:
        finish_install(layout)
    assert data_files(tmp_path) == [Path(name).name for name in new]
    assert all((tmp_path / name).read_text() == "new" for name in (*new, "manifest.json"))
    assert not layout.marker.exists()


def test_a_dataset_without_rows_is_a_dataset(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    flags = ("--dataset", "test=" + write(tmp_path / "a.jsonl", "a"))
    stub.behaviour.task_faults["a"] = [422]
    assert collect(*HUB, *flags, replicas=[stub]).status == 3
    assert len(latentwire.load(output, split="test")) == 0
    assert collect(*HUB, *flags, "--retry-failed", replicas=[stub]).status == 0
    assert len(latentwire.load(output, split="test")) == 1
