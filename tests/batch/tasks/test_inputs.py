"""Several inputs, and names of splits in front of them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from latentwire_batch.dispatch.seeds import Seeds
from latentwire_batch.errors import UsageError
from latentwire_batch.tasks.inputs import NamedInput, named_inputs
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica


def write(path: Path, *tasks: str) -> str:
    path.write_text("".join(json.dumps({"task": task}) + "\n" for task in tasks))
    return str(path)


@pytest.mark.parametrize(
    ("text", "split", "location"),
    [
        ("tasks.jsonl", None, "tasks.jsonl"),
        ("test=tasks.jsonl", "test", "tasks.jsonl"),
        ("easy.v2=a=b.jsonl", "easy.v2", "a=b.jsonl"),
        ("test=owner/name", "test", "owner/name"),
        ("train=s3://bucket/x?versionId=3", "train", "s3://bucket/x?versionId=3"),
        # What cannot be the name of a split belongs to the path.
        ("./run=3/tasks.jsonl", None, "./run=3/tasks.jsonl"),
        ("run-a=3/tasks.jsonl", None, "run-a=3/tasks.jsonl"),
        ("all=tasks.jsonl", None, "all=tasks.jsonl"),
        ("=tasks.jsonl", None, "=tasks.jsonl"),
        ("s3://bucket/x?versionId=3", None, "s3://bucket/x?versionId=3"),
        # A path that exists is a path.
        ("lr=3", None, "lr=3"),
        ("fold=1/tasks.jsonl", None, "fold=1/tasks.jsonl"),
    ],
)
def test_a_name_is_only_what_can_name_a_split(
    text: str, split: str | None, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").write_text("")
    (tmp_path / "fold=1").mkdir()
    (tmp_path / "fold=1" / "tasks.jsonl").write_text("")
    assert NamedInput.of(text) == NamedInput(split, location)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["test=a", "train=b", "test=c"], "test= is given twice"),
        (["test=a", "b"], "name each input, like train=PATH, or none of them"),
        (["test="], "nothing follows test="),
    ],
)
def test_names_that_say_too_little_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^--dataset: {message}"):
        named_inputs(texts)


def test_rows_of_several_inputs_follow_one_another(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    first, second = write(tmp_path / "a,1", "a", "b"), write(tmp_path / "b", "c", "d", "e")
    flags = ["--dataset", first, "--dataset", second, "--columns", "seed"]
    assert collect(*flags, "--limit", "4", replicas=[stub]).status == 0
    made = datasets.load_from_disk(str(output / "hf_dataset"))
    assert list(made["task"]) == ["a", "b", "c", "d"]
    # An id that is an index, and a seed, count over all inputs.
    assert list(made["task_id"]) == ["0", "1", "2", "3"]
    seeds = Seeds(7)
    assert list(made["seed"]) == [seeds.of_row(index) for index in range(4)]


def test_an_error_names_the_input_of_several(collect: Collect, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", "a"), tmp_path / "b.jsonl"
    second.write_text('{"task": "b"}\n{"task": 3}\n')
    ended = collect("--dataset", first, "--dataset", str(second))
    assert ended.status == 2
    assert "--dataset: input 2 (b.jsonl): row 2: field 'task' is not text but int" in ended.stderr
    assert str(tmp_path) not in ended.stderr
