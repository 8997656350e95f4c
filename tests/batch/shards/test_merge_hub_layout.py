"""Shards with files that are named after their splits, merged, are the dataset of one run."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from latentwire_batch.__main__ import main
from support.batch.collecting import WatchedStream, write_tasks
from support.batch.stub_replica import StubReplica

Merge = Any

CASES = {
    "three shards": (3, {"train": 7, "test": 4}, ()),
    # More shards than rows: one is empty. Two rows fail, and one cannot be used.
    "an empty shard": (
        6,
        {"train": 3, "test": 2},
        ("--storage-dtype", "int8", "--columns", "seed", "--skip-invalid"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_splits_are_those_of_one_run(
    case: str, tmp_path: Path, stub: StubReplica, merge: Merge
) -> None:
    num_shards, inputs, more = CASES[case]
    args = ["--layout", "hub", "--replica", stub.base_url, "--seed", "7", "--max-new-tokens", "12"]
    args += more
    for name, count in inputs.items():
        args += ["--dataset", f"{name}={write_tasks(tmp_path / f'{name}.jsonl', count)}"]
    expected = dict(inputs)
    if "--skip-invalid" in more:
        tasks = tmp_path / "train.jsonl"
        lines = tasks.read_text("utf-8").splitlines()
        failing = json.loads(lines[1])["task"]
        tasks.write_text("\n".join([*lines[:2], "broken"]) + "\n", "utf-8")
        stub.behaviour.task_faults = {failing: [422] * 4}
        expected = {"train": 1, "test": 1}
    outputs: list[tuple[str, list[str]]] = [("whole", [])]
    outputs += [("shards", ["--shard", f"{index}/{num_shards}"]) for index in range(num_shards)]
    for name, flags in outputs:
        with redirect_stderr(WatchedStream()) as stderr:
            status = main([*args, "--output-dir", str(tmp_path / name), *flags])
        assert status in (0, 3), stderr.getvalue()
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    ended = merge(sources=(tmp_path / "shards",), target=merged)
    assert ended.status == (0 if expected == inputs else 3), ended.stderr
    files = [
        sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
        for root in (merged, whole)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".parquet"):
            assert pq.read_table(merged / name).equals(pq.read_table(whole / name))
        elif name != "manifest.json":
            assert (merged / name).read_bytes() == (whole / name).read_bytes()
    said = [json.loads((root / "manifest.json").read_text("utf-8")) for root in (merged, whole)]
    assert said[0]["splits"] == said[1]["splits"] == expected
    for part in ("settings", "counts", "files"):
        assert said[0][part] == said[1][part]
    loaded = datasets.load_dataset(str(merged), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == expected


def test_shards_whose_splits_differ_are_refused(
    tmp_path: Path, stub: StubReplica, merge: Merge
) -> None:
    first, second = (str(write_tasks(tmp_path / f"{name}.jsonl", 2)) for name in "ab")
    out = tmp_path / "out"

    def collect(shard: int, *flags: str) -> None:
        args = ["--output-dir", str(out), "--replica", stub.base_url, "--max-new-tokens", "12"]
        with redirect_stderr(WatchedStream()):
            assert main([*args, "--shard", f"{shard}/2", "--overwrite", *flags]) == 0

    named = ("--layout", "hub", "--dataset", f"train={first}", "--dataset")
    collect(0, *named, f"test={second}")
    others = {
        r"splits is \S*(.*'test'.*) and \S*(.*'eval'.*); use the same": (*named, f"eval={second}"),
        "settings: layout is 'hub' and 'classic'; use the same": (
            "--dataset",
            first,
            "--dataset",
            second,
        ),
    }
    for words, flags in others.items():
        collect(1, *flags)
        ended = merge(sources=(out,))
        assert ended.status == 2
        assert re.search(words, ended.stderr), ended.stderr
