"""`latentwire collect --on ray` on a local cluster, with replicas and commands that are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latentwire_batch.__main__ import main
from support.batch.collecting import write_tasks
from support.batch.s3_server import BUCKET, S3Server, Watcher, running_s3
from support.batch.stored import read_both
from support.ray.processes import ENVIRONMENT, Cluster, running_cluster
from support.tiny_models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_ROWS, NUM_REPLICAS, NUM_TOKENS = 60, 2, 24
_PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as monkeypatch, running_s3(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(s3: S3Server) -> Iterator[Cluster]:
    """Run a cluster whose processes reach the bucket by their environment."""
    del s3
    with running_cluster(str(NUM_REPLICAS + 3)) as running:
        yield running


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("ray")
    model = save_model(folder / "tiny")
    tasks = write_tasks(folder / "tasks.jsonl", NUM_ROWS)
    args = ["--dataset", str(tasks), "--model", str(model), "--device", "cpu", "--threads", "1"]
    # Few rows at a time: there is time to kill.
    args += ["--max-new-tokens", str(NUM_TOKENS), "--seed", "7", "--concurrency", "2"]
    return [*args, "--chat-template", "none", "--columns", "token_ids,seed"]


@pytest.fixture(scope="module")
def plain(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect the same rows without Ray."""
    output = tmp_path_factory.mktemp("plain") / "out"
    assert main(["--output-dir", str(output), *flags]) == 0
    return output


def start(flags: list[str], cluster: Cluster, *where: str) -> subprocess.Popen[str]:
    places = ["--on", "ray", "--ray-address", cluster.address, "--replicas", str(NUM_REPLICAS)]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "latentwire", "collect", *where),
            *(*flags, *places, "--gpus-per-replica", "0"),
        ],
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRONMENT},
        encoding="utf-8",
    )


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for other processes, which give no other sign."""
    ends_s = time.monotonic() + _PATIENCE_S
    while not is_true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def rows_in(num_bytes: int, width: int = 48) -> int:
    """Return how many rows so many bytes of records hold, at least."""
    return num_bytes // (width * 4 * NUM_TOKENS + 1000)


def assert_equal_rows(made: pa.Table, expected: pa.Table) -> None:
    for name in ("task", "task_id", "plan", "token_ids", "seed"):
        assert made[name].to_pylist() == expected[name].to_pylist()
    pairs = zip(made["hidden_state"].to_pylist(), expected["hidden_state"].to_pylist(), strict=True)
    for rows, wanted in pairs:
        # Rows that run together with others may differ in the last bit.
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-5)


def kill_replica(
    command: subprocess.Popen[str], cluster: Cluster, logged_rows: Callable[[], int]
) -> None:
    """Kill a replica once rows are durable, and wait for rows that are durable after that."""
    wait_until(lambda: logged_rows() >= 3, command)
    victim = cluster.actors("MapWorker")[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in cluster.actors("MapWorker"), command)
    known = logged_rows()
    wait_until(lambda: logged_rows() >= known + 3, command)


def test_a_killed_replica_changes_no_row_of_a_shared_directory(
    flags: list[str], cluster: Cluster, plain: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def logged_rows() -> int:
        logs = (output / ".partial").glob("rows-part-*.log")
        return rows_in(sum(log.stat().st_size for log in logs))

    with start(flags, cluster, "--output-dir", str(output)) as command:
        kill_replica(command, cluster, logged_rows)
        _, report = command.communicate()
    assert command.returncode == 0, report
    assert f"all {NUM_ROWS} rows are written" in report
    assert not (output / ".partial" / "rows.log").exists()
    assert_equal_rows(read_both(output), read_both(plain))


def test_a_killed_command_is_resumed_elsewhere_from_what_is_in_the_bucket(
    flags: list[str], cluster: Cluster, s3: S3Server, plain: Path, tmp_path: Path
) -> None:
    folder = f"{BUCKET}/on ray/out"
    filesystem = s3.filesystem()

    def run(work: str, *more: str) -> subprocess.Popen[str]:
        places = ("--output-dir", f"s3://{folder}", "--work-dir", str(tmp_path / work))
        return start([*flags, *more], cluster, *places)

    def logged_rows() -> int:
        found = filesystem.find(folder, detail=True)
        return rows_in(sum(found[name]["size"] for name in found if name.endswith(".rows")))

    with Watcher(filesystem, folder) as watcher:
        with run("work") as killed:
            kill_replica(killed, cluster, logged_rows)
            killed.kill()
            killed.communicate()
        num_logged = logged_rows()
        assert 0 < num_logged < NUM_ROWS
        with run("elsewhere", "--top-k", "5") as refused:
            _, report = refused.communicate()
        assert refused.returncode == 2, report
        assert "was made with other settings: sampling.top_k was 0" in report
        with run("elsewhere") as second:
            _, report = second.communicate()
    assert second.returncode == 0, report
    resumed = re.search(rf"resuming: (\d+) of {NUM_ROWS} rows are done", report)
    assert resumed, report
    assert int(resumed[1]) >= num_logged
    files = {name.removeprefix(f"{folder}/") for name in filesystem.find(folder)}
    assert files == {str(path.relative_to(plain)) for path in plain.rglob("*") if path.is_file()}
    for names in watcher.lists:
        assert "manifest.json" not in names or files <= names
    copy = tmp_path / "copy"
    filesystem.get(folder, str(copy), recursive=True)
    assert_equal_rows(read_both(copy), read_both(plain))
