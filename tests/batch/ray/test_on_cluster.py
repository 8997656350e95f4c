"""`latentwire collect --on ray` makes the dataset of one process, whatever is killed meanwhile.

All tests share a cluster of two nodes, because each of Ray's processes takes seconds to start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.__main__ import main
from support.batch.collecting import write_tasks
from support.batch.s3_server import BUCKET, S3Server, Watcher, running_s3
from support.batch.stored import read_both
from support.child import Child
from support.processes.fake_service import COMMAND
from support.ray import stand_in_backend
from support.ray.command import REPLICA, Command
from support.ray.processes import Cluster, parent, running_cluster
from support.ray.stand_in_backend import StandIn
from support.tiny_models import save_model
from support.tiny_shape import HIDDEN_SIZE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_ROWS, NUM_TOKENS = 60, 50
LONG_ROW, UNUSABLE_ROW = 3, 5
FLAGS = ["--max-new-tokens", str(NUM_TOKENS), "--seed", "7", "--chat-template", "none"]
FLAGS += ["--columns", "token_ids,seed", "--skip-invalid"]
# Few rows at a time: while they are slow, there is time to kill.
ON_RAY = ["--gpus-per-replica", "0", "--concurrency", "2", "--replicas", "2"]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as monkeypatch, running_s3(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(s3: S3Server) -> Iterator[Cluster]:
    """Run a cluster whose processes reach the bucket by their environment."""
    del s3
    # Of the head's CPUs, one replica leaves too few for another and Ray Data.
    with running_cluster("3,2") as running:
        yield running


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of which one is long, and one is not a text."""
    path = write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl", NUM_ROWS)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[LONG_ROW] = json.dumps({"id": "long", "task": "word " * 60})
    lines[UNUSABLE_ROW] = json.dumps({"id": "none", "task": 1})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> StandIn:
    return StandIn(tmp_path / stand_in_backend.NAME)


@pytest.fixture(scope="module")
def replica() -> Iterator[str]:
    """The address of a service that answers as the cluster's replicas do."""
    service = Child("--model", stand_in_backend.NAME, "--port", "0", command=COMMAND)
    yield service.url
    service.close()


@pytest.fixture
def command(cluster: Cluster, tmp_path: Path) -> Callable[[str], Command]:
    def started(name: str) -> Command:
        return Command(cluster, tmp_path / f"{name}.txt", [*FLAGS, *ON_RAY])

    return started


def plain(output: Path, flags: Sequence[str]) -> int:
    """Collect the same rows without Ray."""
    return main([*FLAGS, "--output-dir", str(output), *flags])


def rows_in(num_bytes: int) -> int:
    """Return how many rows so many bytes of records hold, at least."""
    return num_bytes // (HIDDEN_SIZE * 4 * NUM_TOKENS + 1500)


def assert_equal_datasets(made: Path, expected: Path, *, is_exact: bool = True) -> None:
    """Compare files, rows, failures and counts; rows are read by other means than our own."""
    assert names_in(made) == names_in(expected)
    tables, wanted = stored(made), stored(expected)
    assert tables.keys() == wanted.keys()
    for split, table in tables.items():
        assert table.schema.equals(wanted[split].schema)
        for name in table.schema.names:
            if is_exact or not name.startswith("hidden_state"):
                assert table[name].to_pylist() == wanted[split][name].to_pylist()
                continue
            pairs = zip(table[name].to_pylist(), wanted[split][name].to_pylist(), strict=True)
            for rows, others in pairs:
                # Rows that run together with others may differ in the last bit, or by one code.
                is_coded = table.schema.field(name).type == pa.list_(pa.list_(pa.int8()))
                np.testing.assert_allclose(rows, others, 1e-4, 1 if is_coded else 1e-5)
    assert (made / "failures.jsonl").read_text() == (expected / "failures.jsonl").read_text()
    manifest, other = manifest_of(made), manifest_of(expected)
    for key in ("counts", "splits"):
        assert manifest.get(key) == other.get(key)
    assert manifest["settings"].get("shard") == other["settings"].get("shard")


def manifest_of(output: Path) -> Any:
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))


def names_in(output: Path) -> set[str]:
    """The files of a dataset, but those of the hub layout, which a cluster cuts at other rows."""
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("data/")}


def stored(output: Path) -> dict[str, pa.Table]:
    """The rows of a dataset, by split; its files are read in order."""
    files = sorted((output / "data").glob("*.parquet"))
    if not files:
        return {"": read_both(output)}
    splits: dict[str, list[pa.Table]] = {}
    for path in files:
        splits.setdefault(path.name.partition("-")[0], []).append(pq.read_table(path))
    return {split: pa.concat_tables(tables) for split, tables in splits.items()}


def test_a_killed_command_is_resumed_elsewhere_from_what_is_in_the_bucket(
    command: Callable[[str], Command],
    cluster: Cluster,
    s3: S3Server,
    tasks: Path,
    model: StandIn,
    replica: str,
    tmp_path: Path,
) -> None:
    """A replica is killed before; the cluster writes the final files, which are of two splits."""
    flags = [f"--dataset=train={tasks}", f"--dataset=validation={tasks}", "--limit", "100"]
    flags += ["--layout", "hub", "--max-shard-size", "150KB"]
    expected = tmp_path / "expected"
    assert plain(expected, [*flags, "--replica", replica]) == 3
    folder = f"{BUCKET}/on ray/out"
    filesystem = s3.filesystem()

    def places(work: str) -> list[str]:
        where = ["--output-dir", f"s3://{folder}", "--work-dir", str(tmp_path / work)]
        return [*flags, *where, "--model", str(model.path)]

    def num_logged() -> int:
        found = filesystem.find(folder, detail=True)
        return rows_in(sum(found[name]["size"] for name in found if name.endswith(".rows")))

    model.slow_down()
    with Watcher(filesystem, folder) as watcher:
        with command("killed") as killed:
            killed.start(*places("work"))
            killed.wait_until(lambda: len(cluster.actors(REPLICA)) == 2)
            killed.kill(cluster.actors(REPLICA)[0], num_logged)
        num_kept = num_logged()
        assert 0 < num_kept < 100
        model.speed_up()
        with command("second") as second:
            assert second.run(*places("elsewhere"), "--top-k", "5") == 2
            assert "was made with other settings: sampling.top_k was 0" in second.report
            assert second.run(*places("elsewhere")) == 3, second.report
            report = second.report
    resumed = re.search(r"resuming: (\d+) of 100 rows are done", report)
    assert resumed, report
    assert int(resumed[1]) >= num_kept
    files = {name.removeprefix(f"{folder}/") for name in filesystem.find(folder)}
    assert len([name for name in files if name.startswith("data/")]) > 4
    for names in watcher.lists:
        assert "manifest.json" not in names or files <= names
    copy = tmp_path / "copy"
    filesystem.get(folder, str(copy), recursive=True)
    assert files - {"manifest.json", "README.md"} == manifest_of(copy)["files"].keys()
    assert_equal_datasets(copy, expected)


def test_a_shard_of_compressed_rows_replaces_an_older_dataset(
    command: Callable[[str], Command], tasks: Path, replica: str, tmp_path: Path
) -> None:
    """The model is a real one, here and there."""
    made, expected = tmp_path / "made", tmp_path / "expected"
    model = ["--model", str(save_model(tmp_path / "tiny")), "--device", "cpu", "--threads", "1"]
    form = ["--dataset", str(tasks), "--limit", "24", "--shard", "1/2", *model]
    form += ["--storage-dtype", "int8", "--compressor", "mean-pool", "--k", "3"]
    older = ["--dataset", str(tasks), "--limit", "6", "--shard", "1/2", "--seed", "8"]
    assert plain(made, [*older, "--replica", replica]) == 3
    with command("overwriting") as overwriting:
        overwriting.start("--output-dir", str(made), *form, "--overwrite")
        statuses = plain(expected, form), overwriting.status()
        assert statuses == (3, 3), overwriting.report
    shard = "shard-00001-of-00002"
    assert_equal_datasets(made / shard, expected / shard, is_exact=False)


def test_a_killed_replica_and_a_lost_node_change_no_row_of_a_shared_directory(
    command: Callable[[str], Command],
    cluster: Cluster,
    tasks: Path,
    model: StandIn,
    replica: str,
    tmp_path: Path,
) -> None:
    """Failed rows are tried again afterwards. Runs last: the cluster has one node after it."""
    made, expected = tmp_path / "made", tmp_path / "expected"
    flags = ["--dataset", str(tasks)]
    on_ray = [*flags, "--output-dir", str(made), "--model", str(model.path)]

    def num_logged() -> int:
        logs = (made / ".partial").glob("rows-part-*.log")
        return rows_in(sum(log.stat().st_size for log in logs))

    head, other = cluster.node_managers()
    model.slow_down()
    with command("shared") as shared:
        shared.start(*on_ray, "--max-model-len", "200")
        shared.wait_until(lambda: len(cluster.actors(REPLICA)) == 2)
        on_node = {parent(pid): pid for pid in cluster.actors(REPLICA)}
        assert on_node.keys() == {head, other}
        shared.kill(on_node[head], num_logged)
        shared.kill(other, num_logged)
        model.speed_up()
        assert shared.status() == 3, shared.report
        assert f"{NUM_ROWS - 2} rows are written; 2 failed" in shared.report
        assert not (made / ".partial" / "rows.log").exists()

        assert plain(expected, [*flags, "--replica", replica]) == 3
        retried = shared.run(*on_ray, "--retry-failed", "--replicas", "1")
        assert retried == 3, shared.report
        resumed = f"resuming: {NUM_ROWS - 2} of {NUM_ROWS} rows are done, and 1 is set aside"
        assert resumed in shared.report
    assert_equal_datasets(made, expected)
