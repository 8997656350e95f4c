"""Datasets of the hub. A stand-in maps their names to folders that the real library reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from latentwire_batch.tasks.hub_dataset import HubDataset, hub_name
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica

NUM_ROWS = 5
SPLITS = """\
---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
CONFIGS = """\
---
configs:
- {config_name: easy, data_files: [{split: train, path: train.jsonl}]}
- {config_name: hard, data_files: [{split: train, path: test.jsonl}]}
---
"""


def rows(split: str) -> list[dict[str, object]]:
    return [{"id": f"{split}{i}", "task": f"Clean {i}", "extra": i} for i in range(NUM_ROWS)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"some/splits": SPLITS, "some/configs": CONFIGS, "some/one": "", "plain": ""}
    for name, card in cards.items():
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(card)
        for split in ("train", "test") if card else ("train",):
            lines = "\n".join(map(json.dumps, rows(split)))
            (folder / f"{split}.jsonl").write_text(lines)

    def on(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(name: str, *args: Any, **options: Any) -> Any:
            if options.pop("revision", None) not in (None, "v1"):
                raise DatasetNotFoundError(f"Revision 'x' doesn't exist for dataset '{name}'.")
            folder = tmp_path / "hub" / name
            if not folder.is_dir():
                raise DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub.")
            return function(str(folder), *args, **options)

        return call

    monkeypatch.setattr("datasets.load_dataset", on(datasets.load_dataset))
    names = on(datasets.get_dataset_config_names)
    monkeypatch.setattr("datasets.get_dataset_config_names", names)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def task_ids(output: Path) -> list[str]:
    dataset = datasets.load_from_disk(str(output / "hf_dataset"))
    return list(dataset["task_id"])


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "flags", "ids"),
    [
        ("some/one", (), [f"train{i}" for i in range(5)]),
        ("plain", ("--split", "train"), [f"train{i}" for i in range(5)]),
        ("some/splits", ("--split", "test"), [f"test{i}" for i in range(5)]),
        ("some/splits", ("--split", "test[1:3]"), ["test1", "test2"]),
        ("some/splits", ("--split", "test", "--limit", "2"), ["test0", "test1"]),
        ("some/configs", ("--dataset-config", "hard"), [f"test{i}" for i in range(5)]),
        ("some/one", ("--dataset-revision", "v1"), [f"train{i}" for i in range(5)]),
        ("https://huggingface.co/datasets/some/one", (), [f"train{i}" for i in range(5)]),
        ("hf://datasets/some/one", (), [f"train{i}" for i in range(5)]),
    ],
)
def test_one_split_of_a_hub_dataset_is_planned(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    name: str,
    flags: tuple[str, ...],
    ids: list[str],
) -> None:
    ended = collect("--dataset", name, *flags, replicas=[stub])
    assert ended.status == 0
    assert task_ids(output) == ids
    # A rerun finds the same rows.
    again = collect("--dataset", name, *flags, replicas=[stub])
    assert again.status == 0
    assert "nothing to do" in again.stderr


@pytest.mark.usefixtures("hub")
def test_the_hub_dataset_is_recorded(collect: Collect, stub: StubReplica, output: Path) -> None:
    flags = ("--split", "test", "--dataset-revision", "v1")
    assert collect("--dataset", "some/splits", *flags, replicas=[stub]).status == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["settings"]["input"] == {
        "dataset": "some/splits",
        "split": "test",
        "dataset_revision": "v1",
        "task_field": "task",
        "id_field": "id",
    }
    assert "some/splits" in (output / "README.md").read_text()


REFUSED = [
    (("some/none",), "Dataset 'some/none' doesn't exist on the Hub."),
    (("some/none",), "a private or gated dataset needs a token in HF_TOKEN"),
    (("some/splits",), "has several splits; choose one of: train, test"),
    (("some/splits", "--split", "dev"), "has no split 'dev'; it has train, test"),
    (("some/configs",), "has several configurations; choose one of: easy, hard"),
    (("some/configs", "--dataset-config", "x"), "no configuration 'x'; it has easy, hard"),
    (("some/one", "--dataset-revision", "x"), "Revision 'x' doesn't exist for dataset"),
    (
        ("some/one", "--task-field", "goal"),
        "field 'goal' is missing; the row has 'id', 'task', 'extra'",
    ),
]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("args", "reason"), REFUSED)
def test_a_hub_dataset_that_cannot_be_planned_says_why(
    collect: Collect, stub: StubReplica, output: Path, args: tuple[str, ...], reason: str
) -> None:
    ended = collect("--dataset", *args, replicas=[stub])
    assert ended.status == 2
    assert reason in ended.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "the hub cannot be reached"),
        (DatasetGenerationError("/home/me/.cache"), "cannot be read as a table"),
        (RuntimeError("Dataset scripts are no longer supported"), "without running its code"),
        (OSError(28, "/home/me/.cache"), "No space left on device"),
        (ValueError("/home/me/.cache"), "is neither on the hub nor in the cache"),
    ],
)
def test_a_failed_download_is_one_line(
    collect: Collect, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("datasets.get_dataset_config_names", fail)
    ended = collect("--dataset", "a/b")
    assert ended.status == 2
    first, last = ended.stderr.splitlines()
    assert "loading the dataset a/b from the Hugging Face hub" in first
    assert last.startswith("latentwire collect: --dataset: no file or folder here, and the ")
    assert reason in last
    assert "/home/me" not in last


@pytest.mark.parametrize(
    ("path", "is_marked", "name"),
    [
        ("openai/gsm8k", False, "openai/gsm8k"),
        ("gsm8k", False, None),
        ("gsm8k", True, "gsm8k"),
        ("data/tasks.jsonl", False, None),
        ("missing/tasks.JSON.gz", True, None),
        ("./openai/gsm8k", False, "openai/gsm8k"),
        ("/openai/gsm8k", False, None),
        ("../openai/gsm8k", False, None),
        ("a/b/c", False, None),
        ("here/missing", False, None),
        ("https://huggingface.co/datasets/openai/gsm8k", False, "openai/gsm8k"),
        ("hf://datasets/openai/gsm8k/", False, "openai/gsm8k"),
        ("hf://datasets/openai/gsm8k/main/train.parquet", True, None),
        ("s3://openai/gsm8k", True, None),
    ],
)
def test_a_path_is_a_hub_dataset_only_where_no_file_can_be_meant(
    path: str, is_marked: bool, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_name(path, is_marked) == name


def test_a_hub_dataset_comes_back_as_written() -> None:
    for dataset in (HubDataset("a/b"), HubDataset("a/b", "c", "s", "r")):
        assert HubDataset.from_json(dataset.to_json()) == dataset
    assert HubDataset.from_json({"task_field": "task"}) is None


def test_a_split_of_a_saved_dataset_is_chosen(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    splits = {name: datasets.Dataset.from_list(rows(name)) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(saved))
    ended = collect("--dataset", str(saved), replicas=[stub])
    assert ended.status == 2
    assert "--dataset: holds several splits; --split names one of: train, test" in ended.stderr
    ended = collect("--dataset", str(saved), "--split", "dev", replicas=[stub])
    assert ended.status == 2
    assert "--split: no split 'dev'; --dataset has train, test" in ended.stderr
    assert collect("--dataset", str(saved), "--split", "test", replicas=[stub]).status == 0
    assert task_ids(output) == [f"test{i}" for i in range(NUM_ROWS)]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--split", "x"), "--split: is for datasets of the hub and for folders with"),
        (("--dataset-config", "x"), "--dataset-config: is for datasets of the hub"),
        (("--dataset-revision", "x"), "--dataset-revision: is for datasets of the hub"),
    ],
)
def test_choices_for_a_hub_dataset_are_refused_for_a_file(
    collect: Collect, flags: tuple[str, ...], reason: str
) -> None:
    ended = collect(*flags)
    assert ended.status == 2
    assert reason in ended.stderr
