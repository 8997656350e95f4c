"""Collections on a Ray cluster of two nodes make the datasets that one process makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.batch.collecting import write_tasks
from support.child import Child
from support.ray.processes import ENVIRONMENT, Cluster, running_cluster
from support.tiny_models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_REPLICAS = 2
FAILED_ROW = 3
SAMPLING = ["--max-new-tokens", "12", "--chat-template", "none", "--seed", "7"]
FLAGS = ["--columns", "token_ids,seed", *SAMPLING]


class Collections:
    """Runs commands in one process.

    Args:
        flags: of all commands.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        self._flags = flags
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.ray.collections"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            encoding="utf-8",
        )

    def start(self, *flags: str) -> None:
        """Begin a collection."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([*FLAGS, *self._flags, *flags]) + "\n")
        self.process.stdin.flush()

    def status(self) -> int:
        """Return the exit status of the collection that was begun."""
        assert self.process.stdout is not None
        # Ray prints what it has to say of a lost node in between.
        lines = (line for line in self.process.stdout if line.startswith("status "))
        return int(next(lines).split()[1])

    def run(self, *flags: str) -> int:
        """Run a collection."""
        self.start(*flags)
        return self.status()


@contextmanager
def running_collections(*flags: str) -> Iterator[Collections]:
    collections = Collections(flags)
    with collections.process as process:
        try:
            yield collections
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("ray") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Of the head's CPUs, one replica leaves too few for another and Ray Data.
    with running_cluster("3,2") as running:
        yield running


@pytest.fixture(scope="module")
def on_ray(model: Path, cluster: Cluster) -> Iterator[Collections]:
    places = ["--on", "ray", "--ray-address", cluster.address, "--replicas", str(NUM_REPLICAS)]
    own = ["--model", str(model), "--device", "cpu", "--threads", "1", "--gpus-per-replica", "0"]
    with running_collections(*places, *own) as collections:
        yield collections


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[Collections]:
    service = Child("--model", str(model), "--port", "0", "--threads", "1", "--device", "cpu")
    with running_collections("--replica", service.url) as collections:
        yield collections
    service.close()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of which one has a prompt that does not fit, and one is not a text."""
    path = write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", 16)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[FAILED_ROW] = json.dumps({"id": "long", "task": "word " * 600})
    lines[5] = json.dumps({"id": "none", "task": 1})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def stored(output: Path) -> dict[str, pa.Table]:
    """The rows of a dataset, by split; its files are read in order."""
    files = sorted((output / "data").glob("*.parquet")) or [output / "data.parquet"]
    splits: dict[str, list[pa.Table]] = {}
    for path in files:
        splits.setdefault(path.name.partition("-")[0], []).append(pq.read_table(path))
    return {split: pa.concat_tables(tables) for split, tables in splits.items()}


def assert_equal_datasets(made: Path, expected: Path) -> None:
    assert {path.name for path in made.iterdir()} == {path.name for path in expected.iterdir()}
    tables, wanted = stored(made), stored(expected)
    assert tables.keys() == wanted.keys()
    for split, table in tables.items():
        assert table.schema.equals(wanted[split].schema)
        for name in table.schema.names:
            if not name.startswith("hidden_state"):
                assert table[name].to_pylist() == wanted[split][name].to_pylist()
        for name in (name for name in table.schema.names if name.startswith("hidden_state")):
            pairs = zip(table[name].to_pylist(), wanted[split][name].to_pylist(), strict=True)
            for rows, others in pairs:
                # Rows that run together with others may differ in the last bit, or by one code.
                is_coded = table.schema.field(name).type == pa.list_(pa.list_(pa.int8()))
                np.testing.assert_allclose(rows, others, 1e-4, 1 if is_coded else 1e-5)
    if (expected / "failures.jsonl").exists():
        assert (made / "failures.jsonl").read_text() == (expected / "failures.jsonl").read_text()
    assert counts(made) == counts(expected)


def counts(output: Path) -> object:
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    return manifest["counts"], manifest.get("splits"), manifest["settings"].get("shard")


@pytest.mark.parametrize(
    ("flags", "num_datasets", "folder"),
    [
        (
            ["--shard", "1/2", "--skip-invalid", "--storage-dtype", "int8"]
            + ["--compressor", "mean-pool", "--k", "3"],
            1,
            "shard-00001-of-00002",
        ),
        (
            ["--layout", "hub", "--max-shard-size", "8KB", "--skip-invalid", "--limit", "25"],
            2,
            ".",
        ),
    ],
    ids=["compressed shard", "splits"],
)
def test_each_form_of_a_dataset_is_that_of_one_process(
    flags: list[str],
    num_datasets: int,
    folder: str,
    on_ray: Collections,
    plain: Collections,
    tasks: Path,
    tmp_path: Path,
) -> None:
    names = ("train", "validation")[:num_datasets]
    inputs = [
        f"--dataset={name}={tasks}" if num_datasets > 1 else f"--dataset={tasks}" for name in names
    ]
    made, expected = tmp_path / "made", tmp_path / "expected"
    on_ray.start("--output-dir", str(made), *inputs, *flags)
    statuses = plain.run("--output-dir", str(expected), *inputs, *flags), on_ray.status()
    assert statuses[0] == statuses[1]
    assert statuses[0] in (0, 3)
    assert_equal_datasets(made / folder, expected / folder)
