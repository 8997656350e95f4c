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
        ("s3://bucket/x?versionId=3", None, "s3://bucket/x?versionId=3"),
        ("s3:/bucket/x?versionId=3", None, "s3:/bucket/x?versionId=3"),
        # A path that exists is a path.
        ("lr=3", None, "lr=3"),
        ("all=3", None, "all=3"),
        ("=3", None, "=3"),
        ("fold=1/tasks.jsonl", None, "fold=1/tasks.jsonl"),
        ("./fold=1/tasks.jsonl", None, "./fold=1/tasks.jsonl"),
        ("run-a=1/tasks.jsonl", None, "run-a=1/tasks.jsonl"),
    ],
)
def test_a_name_is_only_what_can_name_a_split(
    text: str, split: str | None, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=3", "all=3", "=3"):
        (tmp_path / name).write_text("")
    for name in ("fold=1", "run-a=1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks.jsonl").write_text("")
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


_FORM = "a name consists of ASCII letters, digits, _ and single dots"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("all", "all stands for all splits together"),
        *((name, _FORM) for name in ("train[:10]", "train+test", "50%", "a-b", "a b", "été")),
        *((name, _FORM) for name in (".train", "train.", "a..b", "a/b", "./run", "../x", "a:b")),
        ("n" * 201, "a name has at most 200 characters"),
    ],
)
@pytest.mark.parametrize("location", ["tasks.jsonl", "s3://bucket/tasks.jsonl", "owner/name", ""])
def test_what_cannot_name_a_split_is_refused_as_that(
    name: str, reason: str, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tasks.jsonl", "a")
    with pytest.raises(UsageError) as refused:
        named_inputs([f"{name}={location}"])
    shown = f"{name[:60]}..." if len(name) > 60 else name
    assert str(refused.value) == (
        f"--dataset: {shown!r} in front of = cannot name a split: {reason}; no file or folder has "
        "the whole text as its name"
    )


def test_an_input_without_a_name_in_front_of_the_sign_is_refused(
    collect: Collect, tasks: Path, output: Path
) -> None:
    ended = collect("--dataset", f"={tasks}", "--layout", "hub")
    assert (ended.status, ended.stderr.count("\n")) == (2, 1)
    assert "--dataset: nothing precedes the =; no file or folder has the whole" in ended.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("all", "cannot name files after the split 'all': all stands for all splits together"),
        ("a-b", f"cannot name files after the split 'a-b': {_FORM}"),
        ("n" * 201, "a name has at most 200 characters"),
        ("", "--split: must not be empty"),
    ],
)
def test_a_split_after_which_no_file_can_be_named_is_refused(
    split: str, message: str, collect: Collect, output: Path
) -> None:
    ended = collect("--layout", "hub", "--split", split)
    assert ended.status == 2
    assert message in ended.stderr
    assert not output.exists()


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
