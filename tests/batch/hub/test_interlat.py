"""Readers like those of Interlat's training and evaluation, on the hub layout and the classic one.

Both turn a split into a pandas table and look up `hidden_state` and `plan`: training by `task_id`
in the split train, evaluation by the task's text in the splits test and validation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import latentwire
from support.batch.collecting import Collect
from support.batch.stub_replica import StubReplica

TASKS = {"train": ["Clean\n\nthe mug", "Heat it"], "test": ["Find the pen"], "validation": ["Go"]}


def table_of(frame: pd.DataFrame, key: str) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    for _, row in frame.iterrows():
        nested = row["hidden_state"]
        assert nested.dtype == object
        rows = np.array(nested.tolist(), dtype=np.float32)
        found[row[key].replace("\n\n", "\n")] = (rows, row["plan"])
    return found


def check(found: dict[str, tuple[Any, str]], path: Path, key: str, split: str | None) -> None:
    expected = list(latentwire.load(path, split=split))
    assert len(found) == len(expected)
    for row in expected:
        latent, plan = found[getattr(row, key).replace("\n\n", "\n")]
        np.testing.assert_array_equal(latent, row.hidden_state)
        assert plan == row.plan


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    paths: dict[str, str] = {}
    for split, tasks in TASKS.items():
        path = tmp_path / f"{split}.jsonl"
        lines = (json.dumps({"id": f"{split}-{n}", "task": t}) for n, t in enumerate(tasks))
        path.write_text("\n".join(lines))
        paths[split] = str(path)
    return paths


def test_both_readers_find_their_splits(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path, inputs: dict[str, str]
) -> None:
    flags = [part for split, path in inputs.items() for part in ("--dataset", f"{split}={path}")]
    assert collect("--layout", "hub", *flags, replicas=[stub]).status == 0
    cache = str(tmp_path / "cache")
    for split, key in (
        (datasets.Split.TRAIN, "task_id"),
        (datasets.Split.TEST, "task"),
        (datasets.Split.VALIDATION, "task"),
    ):
        loaded = datasets.load_dataset(str(output), split=split, cache_dir=cache)
        check(table_of(loaded.to_pandas(), key), output, key, str(split))


def test_the_training_reader_takes_the_classic_files(
    collect: Collect, stub: StubReplica, output: Path, inputs: dict[str, str]
) -> None:
    assert collect("--dataset", inputs["train"], replicas=[stub]).status == 0
    saved = datasets.load_from_disk(str(output / "hf_dataset")).to_pandas()
    for frame in (saved, pd.read_parquet(output / "data.parquet")):
        check(table_of(frame, "task_id"), output, "task_id", None)
