"""Shards: each holds its own rows, with the seeds and the date of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latentwire_batch.__main__ import main
from latentwire_batch.output.layout import OutputLayout
from support.batch.collecting import Collect
from support.batch.dataset_oracle import tasks_of
from support.batch.stub_replica import StubReplica

SCRIPT = Path(__file__).parents[3] / "batch" / "collect_hidden_states.py"


def manifest_of(output: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text("utf-8"))
    return manifest


def in_array(monkeypatch: pytest.MonkeyPatch, task: int, count: int) -> None:
    values = {"ID": task, "COUNT": count, "MIN": 0, "MAX": count - 1}
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_a_shard_holds_its_rows_of_the_whole(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    ended = collect("--shard", "3/7", replicas=[stub])
    assert ended.status == 0
    assert ended.stderr.splitlines()[0] == "latentwire collect: shard 3/7: given by --shard"
    assert "latentwire merge SHARDS -o DATASET" in ended.stderr
    ids = [f"t{index}" for index in range(3, 40, 7)]
    assert sorted(map(str, stub.received_ids())) == sorted(ids)
    shard = output / "shard-00003-of-00007"
    assert {path.name for path in output.iterdir()} == {shard.name, "shards.json"}
    assert collect("--output-dir", str(tmp_path / "whole"), replicas=[stub]).status == 0
    whole = pq.read_table(tmp_path / "whole" / "data.parquet")
    own = pq.read_table(shard / "data.parquet")
    assert own["task_id"].to_pylist() == ids
    assert own.equals(whole.take(list(range(3, 40, 7))))
    manifest = manifest_of(shard)
    assert manifest["settings"]["shard"] == {"index": 3, "count": 7}
    assert manifest["counts"]["rows"] == manifest["counts"]["finished"] == 6
    assert manifest["settings"]["data"] == manifest_of(tmp_path / "whole")["settings"]["data"]
    assert "shard" not in manifest_of(tmp_path / "whole")["settings"]


def test_a_slurm_array_is_divided_and_its_tasks_share_a_folder(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in range(2):
        in_array(monkeypatch, task, 2)
        ended = collect(replicas=[stub])
        assert ended.status == 0
        assert f"shard {task}/2: SLURM_ARRAY_TASK_ID is {task}" in ended.stderr.splitlines()[0]
    assert sorted(map(str, stub.received_ids())) == sorted(f"t{i}" for i in range(40))
    again = collect(replicas=[stub])
    assert (again.status, len(stub.received)) == (0, 40)
    assert "all 20 rows are already collected" in again.stderr


def test_shards_without_a_seed_have_the_same_one(
    stub: StubReplica, output: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--dataset", str(tasks), "--output-dir", str(output), "--replica", stub.base_url]
    for task in range(2):
        monkeypatch.setattr(
            "latentwire_batch.collect.today", lambda task=task: f"2031-12-0{task + 1}"
        )
        assert main([*args, "--max-new-tokens", "12", "--shard", f"{task}/2"]) == 0
    settings = [manifest_of(path)["settings"] for path in sorted(output.glob("shard-*"))]
    assert settings[0]["seed"] == settings[1]["seed"]
    assert 0 <= settings[0]["seed"] < 1 << 53
    # The second shard begins on the next day.
    assert [setting["prompt"]["date"] for setting in settings] == ["2031-12-01"] * 2
    assert set(stub.dates) == {"2031-12-01"}


def test_a_shard_without_rows_is_a_dataset_without_rows(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    ended = collect("--shard", "3/5", "--limit", "2", replicas=[stub])
    assert ended.status == 0, ended.stderr
    shard = output / "shard-00003-of-00005"
    assert pq.read_table(shard / "data.parquet").num_rows == 0
    assert manifest_of(shard)["counts"]["rows"] == 0
    assert not stub.received


@pytest.mark.parametrize("flag", ["--skip-invalid", "--retry-failed"])
def test_failed_rows_of_a_shard(
    flag: str, collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    rows = tasks_of(tasks)
    shard = output / "shard-00001-of-00003"
    if flag == "--skip-invalid":
        lines = tasks.read_text("utf-8").splitlines()
        # One of this shard, one of another.
        lines[4] = lines[5] = "broken"
        tasks.write_text("\n".join(lines) + "\n", "utf-8")
    else:
        stub.behaviour.task_faults = {rows[index][1]: [422] for index in (4, 5)}
    flags = [] if flag == "--retry-failed" else [flag]
    ended = collect("--shard", "1/3", *flags, replicas=[stub])
    assert ended.status == 3
    failures = [json.loads(line) for line in (shard / "failures.jsonl").read_text().splitlines()]
    assert [failure["row"] for failure in failures] == [4]
    assert manifest_of(shard)["counts"]["rows"] == 13
    received = len(stub.received)
    ended = collect("--shard", "1/3", *flags, "--retry-failed", replicas=[stub])
    assert ended.status == (3 if flag == "--skip-invalid" else 0)
    assert len(stub.received) == received + (flag == "--retry-failed")
    expected = [index for index in range(1, 40, 3) if index != 4 or flag == "--retry-failed"]
    ids = pq.read_table(shard / "data.parquet")["task_id"].to_pylist()
    assert ids == [rows[index][0] for index in expected]


def test_a_stopped_shard_resumes(collect: Collect, stub: StubReplica, output: Path) -> None:
    stub.behaviour.die_after = 5
    flags = ("--shard", "1/2", "--concurrency", "1")
    assert collect(*flags, "--replica-timeout", "0.2", replicas=[stub]).status == 1
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    answered = set(stub.answered)
    stub.received.clear()
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 0
    assert "resuming: 5 of 20 rows are done" in ended.stderr
    assert not answered & set(stub.received_ids())
    # Without its flag, the folder of a shard is not the dataset of all rows.
    ended = collect("--output-dir", str(output / "shard-00001-of-00002"), replicas=[stub])
    assert ended.status == 2
    assert "shard was {'index': 1, 'count': 2}, now None" in ended.stderr


def test_shards_of_another_number_and_all_rows_are_not_mixed(
    collect: Collect, stub: StubReplica
) -> None:
    assert collect("--shard", "0/2", replicas=[stub]).status == 0
    num_received = len(stub.received)
    ended = collect("--shard", "0/4", replicas=[stub])
    assert (ended.status, "holds shards of 2, and this is shard 0/4" in ended.stderr) == (2, True)
    ended = collect(replicas=[stub])
    assert (ended.status, "holds shards, which latentwire merge" in ended.stderr) == (2, True)
    assert len(stub.received) == num_received


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_dataset_of_all_rows_is_not_taken_for_a_shard(
    is_finished: bool,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A collection that an array job with a dataset for each task began without shards."""
    stub.behaviour.die_after = None if is_finished else 9
    status = collect("--replica-timeout", "0.2", replicas=[stub]).status
    assert status == (0 if is_finished else 1)
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    in_array(monkeypatch, 1, 4)
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "holds a collection of all rows" in ended.stderr
    ended = collect("--shard", "none", replicas=[stub])
    assert ended.status == 0
    assert "all rows, not a shard: --shard is none" in ended.stderr.splitlines()[0]
    assert not list(output.glob("shard*"))
    assert not OutputLayout(output).partial.exists()


def test_messages_name_the_variable_that_was_set(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTWIRE_COLLECT_SHARD", "16/16")
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert ended.stderr.startswith("latentwire collect: LATENTWIRE_COLLECT_SHARD: there is no")
    monkeypatch.setenv("LATENTWIRE_COLLECT_SHARD", "15/16")
    ended = collect(replicas=[stub])
    assert "shard 15/16: given by LATENTWIRE_COLLECT_SHARD" in ended.stderr
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "x")
    ended = collect("--shard", "/16", replicas=[stub])
    assert ended.stderr.startswith("latentwire collect: JOB_COMPLETION_INDEX: must be a whole")


@pytest.mark.slow
def test_ranks_share_the_rows_of_a_shard(
    stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path
) -> None:
    args = ["--model_name_or_path", "stub", "--dataset_path", str(tasks), "--seed", "7"]
    args += ["--output_dir", str(output), "--max_new_tokens", "12"]
    started = []
    for rank, replica in enumerate((stub, other_stub)):
        environ = os.environ | {"WORLD_SIZE": "2", "RANK": str(rank), "TORCHELASTIC_RUN_ID": "x"}
        environ |= {"LATENTWIRE_COLLECT_REPLICA": replica.base_url}
        # These commands have no flag for it, and an array alone does not divide their rows.
        environ |= {"SLURM_ARRAY_TASK_ID": "1", "LATENTWIRE_COLLECT_SHARD": "/3"}
        command = [sys.executable, str(SCRIPT), *args]
        started.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    ended = [(process.communicate(timeout=180)[1], process.returncode) for process in started]
    assert [status for _, status in ended] == [0, 0], ended
    assert sum("shard 1/3: SLURM_ARRAY_TASK_ID is 1" in stderr for stderr, _ in ended) == 1
    for rank, replica in enumerate((stub, other_stub)):
        own = [f"t{index}" for index in range(1, 40, 3) if index // 3 % 2 == rank]
        assert sorted(map(str, replica.received_ids())) == sorted(own)
    table = pq.read_table(output / "shard-00001-of-00003" / "data.parquet")
    assert table["task_id"].to_pylist() == [f"t{index}" for index in range(1, 40, 3)]
