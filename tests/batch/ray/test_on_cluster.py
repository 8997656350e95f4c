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
from support.batch.stored import read_both
from support.ray.processes import ENVIRONMENT, Cluster, running_cluster
from support.tiny_models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_ROWS, NUM_REPLICAS, NUM_TOKENS = 60, 2, 24
_PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
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


def start(flags: list[str], cluster: Cluster, output: Path) -> subprocess.Popen[str]:
    places = ["--on", "ray", "--ray-address", cluster.address, "--replicas", str(NUM_REPLICAS)]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "latentwire", "collect", "--output-dir", str(output)),
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


def logged_rows(output: Path, width: int = 48) -> int:
    """Return how many rows the replicas' logs hold, at least."""
    logs = (output / ".partial").glob("rows-part-*.log")
    return sum(log.stat().st_size for log in logs) // (width * 4 * NUM_TOKENS + 1000)


def assert_equal_rows(made: pa.Table, expected: pa.Table) -> None:
    for name in ("task", "task_id", "plan", "token_ids", "seed"):
        assert made[name].to_pylist() == expected[name].to_pylist()
    pairs = zip(made["hidden_state"].to_pylist(), expected["hidden_state"].to_pylist(), strict=True)
    for rows, wanted in pairs:
        # Rows that run together with others may differ in the last bit.
        np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-5)


def test_a_killed_replica_and_a_killed_command_change_no_row(
    flags: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with start(flags, cluster, output) as first:
        wait_until(lambda: logged_rows(output) >= 3, first)
        victim = cluster.actors("MapWorker")[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in cluster.actors("MapWorker"), first)
        known = logged_rows(output)
        wait_until(lambda: logged_rows(output) >= known + 3, first)
        first.kill()
        first.communicate()
    num_logged = logged_rows(output)
    assert 0 < num_logged < NUM_ROWS
    with start(flags, cluster, output) as second:
        _, report = second.communicate()
    assert second.returncode == 0, report
    resumed = re.search(rf"resuming: (\d+) of {NUM_ROWS} rows are done", report)
    assert resumed, report
    assert int(resumed[1]) >= num_logged
    assert f"all {NUM_ROWS} rows are written" in report
    assert not (output / ".partial" / "rows.log").exists()
    plain = tmp_path / "plain"
    assert main(["--output-dir", str(plain), *flags]) == 0
    assert_equal_rows(read_both(output), read_both(plain))
