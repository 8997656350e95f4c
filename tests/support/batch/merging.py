"""Shards to merge, and the comparison of a merged dataset with that of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from support.batch.collecting import Collect, Ended
from support.batch.stub_replica import StubReplica


def said(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text("utf-8"))
    return manifest


def values_of(column: pa.ChunkedArray) -> list[bytes]:
    """Return the values of each row as bytes: equality of floats would take -0.0 for 0.0."""
    rows = column.combine_chunks()
    flat = [row.values for row in rows]
    while flat and pa.types.is_list(flat[0].type):
        flat = [row.flatten() for row in flat]
    return [row.to_numpy(zero_copy_only=False).tobytes() for row in flat]


def assert_equal_datasets(found: Path, expected: Path) -> None:
    """Compare everything but times and the number of replicas."""
    own, other = pq.read_table(found / "data.parquet"), pq.read_table(expected / "data.parquet")
    assert own.schema.equals(other.schema, check_metadata=True)
    assert own.equals(other)
    for name in own.column_names:
        if name.startswith("hidden_state"):
            assert values_of(own[name]) == values_of(other[name])
    saved = [datasets.load_from_disk(str(path / "hf_dataset")) for path in (found, expected)]
    assert saved[0].features == saved[1].features
    assert saved[0].data.table.equals(saved[1].data.table)
    assert (found / "README.md").read_text("utf-8") == (expected / "README.md").read_text("utf-8")
    failures = [path / "failures.jsonl" for path in (found, expected)]
    assert failures[0].exists() == failures[1].exists()
    if failures[0].exists():
        assert failures[0].read_bytes() == failures[1].read_bytes()
    mine, theirs = said(found), said(expected)
    note = mine.pop("merged")
    assert len(note["sha256"]) == 64
    for manifest in (mine, theirs):
        del manifest["elapsed_s"]
        del manifest["replicas"]["count"]
    assert mine == theirs
    assert not (found / ".partial").exists()


def collect_shards(collect: Collect, stub: StubReplica, count: int, *flags: str) -> list[Ended]:
    return [collect("--shard", f"{i}/{count}", *flags, replicas=[stub]) for i in range(count)]
