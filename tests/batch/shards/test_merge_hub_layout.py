"""Shards with files that are named after their splits, merged, are the dataset of one run."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from pathlib import Path

import datasets
import pyarrow.parquet as pq

from latentwire_batch.__main__ import main
from support.batch.collecting import Ended, WatchedStream, write_tasks
from support.batch.stub_replica import StubReplica


def test_the_splits_are_those_of_one_run(tmp_path: Path, stub: StubReplica, merge: object) -> None:
    assert callable(merge)
    inputs = {"train": 7, "test": 4}
    args = ["--layout", "hub", "--replica", stub.base_url, "--seed", "7", "--max-new-tokens", "12"]
    for name, count in inputs.items():
        args += ["--dataset", f"{name}={write_tasks(tmp_path / f'{name}.jsonl', count)}"]
    outputs: list[tuple[str, list[str]]] = [("whole", [])]
    outputs += [("shards", ["--shard", f"{index}/3"]) for index in range(3)]
    for name, flags in outputs:
        with redirect_stderr(WatchedStream()) as stderr:
            status = main([*args, "--output-dir", str(tmp_path / name), *flags])
        assert status == 0, stderr.getvalue()
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    ended: Ended = merge(sources=(tmp_path / "shards",), target=merged)
    assert ended.status == 0, ended.stderr
    files = [
        sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())
        for root in (merged, whole)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith(".parquet"):
            assert pq.read_table(merged / name).equals(pq.read_table(whole / name))
    assert (merged / "README.md").read_bytes() == (whole / "README.md").read_bytes()
    said = [json.loads((root / "manifest.json").read_text("utf-8")) for root in (merged, whole)]
    assert said[0]["splits"] == said[1]["splits"] == inputs
    assert said[0]["settings"] == said[1]["settings"]
    loaded = datasets.load_dataset(str(merged), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == inputs
