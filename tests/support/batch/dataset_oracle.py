"""Reads a finished output with the usual readers and compares it with the stub's arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentwire_batch.dispatch.seeds import ROW_SEED_BITS, row_seed
from support.batch.collecting import Collect, Ended
from support.batch.stub_answers import latent, num_tokens, plan_text
from support.batch.stub_replica import StubReplica


def assert_complete(
    output: Path,
    tasks: list[tuple[str, str]],
    *,
    without: tuple[int, ...] = (),
    seed: int = 7,
    row_seed_bits: int = ROW_SEED_BITS,
    max_new_tokens: int = 12,
    hidden_size: int = 8,
    k: int | None = None,
) -> None:
    """Assert that both files hold exactly these (id, task) rows in order, and nothing is left."""
    table = pq.read_table(output / "data.parquet")
    assert table.schema.names == ["task", "task_id", "plan", "hidden_state"]
    assert [field.type for field in table.schema][:3] == [pa.string()] * 3
    latents = table.schema.field("hidden_state").type
    assert pa.types.is_list(latents)
    assert pa.types.is_list(latents.value_type)
    assert latents.value_type.value_type == pa.float32()

    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert table.cast(saved.data.schema).equals(saved.data.table)

    rows = table.to_pylist()
    present = [i for i in range(len(tasks)) if i not in without]
    assert [(row["task_id"], row["task"]) for row in rows] == [tasks[i] for i in present]
    for index, row in zip(present, rows, strict=True):
        task, own_seed = tasks[index][1], row_seed(seed, index, row_seed_bits)
        count = num_tokens(task, own_seed, max_new_tokens)
        expected = latent(task, own_seed, count if k is None else min(k, count), hidden_size)
        assert row["plan"] == plan_text(task, own_seed)
        np.testing.assert_array_equal(
            np.array(row["hidden_state"], dtype=np.float32).reshape(-1, hidden_size), expected
        )
    assert not (output / ".partial").exists()


def tasks_of(path: Path) -> list[tuple[str, str]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["id"], record["task"]) for record in records]


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
    assert mine == theirs
    assert not (found / ".partial").exists()


def collect_shards(collect: Collect, stub: StubReplica, count: int, *flags: str) -> list[Ended]:
    return [collect("--shard", f"{i}/{count}", *flags, replicas=[stub]) for i in range(count)]
