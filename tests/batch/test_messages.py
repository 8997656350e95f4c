"""What a run tells: why it waits or refuses, what was cut, and what to do next."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

import pytest

from latentwire_batch.console import Console
from latentwire_batch.exit_status import ExitStatus, Written, report_written
from latentwire_batch.inspection.command import main as inspect
from latentwire_batch.locations import place_of, shown_path
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.shards.shard import Shard
from support.batch.collecting import Collect, WatchedStream
from support.batch.dataset_oracle import tasks_of
from support.batch.stub_replica import StubReplica


@pytest.fixture
def short_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire_batch.replicas.fleet._REPORT_INTERVAL_S", 0.05)


@pytest.fixture
def known_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for the first replica begins when each has been requested once."""
    connect = Fleet.connect

    async def after_a_probe(fleet: Fleet, patience_s: float) -> ModelIdentity:
        for replica in fleet.replicas:
            is_absent = asyncio.Event()
            probe = asyncio.create_task(fleet._greet(replica, is_absent.set))
            await is_absent.wait()
            probe.cancel()
        return await connect(fleet, patience_s)

    monkeypatch.setattr(Fleet, "connect", after_a_probe)


@pytest.mark.parametrize("patience_at_start", [0.0])
@pytest.mark.usefixtures("short_reports", "known_states")
def test_the_reason_why_no_replica_is_ready_is_told(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    stub.behaviour.is_ready = False
    flags = ["--replica", "http://127.0.0.1:9", "--replica-timeout", "0.4"]
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 1
    states = "replica 0 says: scripted not-ready; replica 1 does not answer: nothing listens there"
    assert f"no replica was ready within 0.4 s ({states})" in ended.stderr
    assert re.search(r"waiting for replicas for \d+ s: replica 0", ended.stderr)
    assert "127.0.0.1" not in ended.stderr
    assert "Errno" not in ended.stderr
    assert not output.exists()


@pytest.mark.parametrize("patience_at_start", [0.0])
def test_no_replica_at_the_start_is_an_error_and_writes_nothing(
    collect: Collect, output: Path
) -> None:
    ended = collect("--replica", "http://127.0.0.1:9", "--replica-timeout", "0.2")
    assert ended.status == 1
    assert "no replica was ready within 0.2 s" in ended.stderr
    assert not output.exists()


def test_a_limit_that_leaves_no_room_for_prompts_is_told_before_a_row_is_sent(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    ended = collect("--max-new-tokens", "4096", replicas=[stub])
    assert ended.status == 2
    assert "--max-new-tokens: 4096 leaves no room for a prompt" in ended.stderr
    assert "serve with a larger --max-model-len" in ended.stderr
    assert not stub.received
    assert not output.exists()


def test_failures_come_with_their_numbers_and_advice(
    collect: Collect, stub: StubReplica, tasks: Path
) -> None:
    stub.behaviour.task_faults = {task: [422] for _, task in tasks_of(tasks)[:9]}
    ended = collect(replicas=[stub])
    assert ended.status == 3
    assert ended.stderr.count("failed: prompt-too-long: scripted prompt-too-long") == 3
    assert "31 rows are written; 9 failed" in ended.stderr
    assert "9 failed with prompt-too-long (see failures.jsonl): serve with a larger" in ended.stderr


@pytest.mark.parametrize(
    ("failures", "num_cut", "lines", "status"),
    [
        ({}, 0, ["all 8 rows are written"], ExitStatus.ALL_ROWS),
        (
            {},
            3,
            [
                "all 8 rows are written",
                "3 of 8 plans were cut at --max-new-tokens 96; a larger value gives whole plans",
            ],
            ExitStatus.ALL_ROWS,
        ),
        (
            {"internal": 1},
            0,
            [
                "8 rows are written; 1 failed",
                "1 failed with internal (see failures.jsonl): --retry-failed retries them",
            ],
            ExitStatus.SOME_ROWS_FAILED,
        ),
    ],
)
@pytest.mark.parametrize(
    ("given", "shown", "quoted"),
    [
        ("outputs/demo", "outputs/demo", "outputs/demo"),
        ("/a/b", ".../b", "OUTPUT_DIR"),
        ("my plans", "my plans", "'my plans'"),
        ("a/it's", "a/it's", """'a/it'"'"'s'"""),
        ("--plans", "--plans", "./--plans"),
        ("file:///a/b%20c", ".../b c", "OUTPUT_DIR"),
        ("s3://bucket/a b", "s3://bucket/a b", "'s3://bucket/a b'"),
        ("s3://user:key@bucket/a", "s3://bucket/a", "s3://bucket/a"),
        ("https://host/a?sig=key", "https://host/a", "https://host/a"),
    ],
)
def test_the_last_lines_name_the_files_and_the_next_command(
    failures: dict[str, int],
    num_cut: int,
    lines: list[str],
    status: ExitStatus,
    given: str,
    shown: str,
    quoted: str,
) -> None:
    stream = WatchedStream()
    written = Written(8, failures, num_cut, 96, place_of(given))
    assert report_written(Console(stream, "c"), written) == status
    last = f"the dataset is in {shown}; look at it with: latentwire inspect {quoted}"
    assert stream.getvalue().splitlines() == [f"c: {line}" for line in [*lines, last]]


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ("out/shard-00000-of-00002", "out"),
        ("/a/my plans/shard-00000-of-00002", "SHARDS"),
        ("shard-00000-of-00002", "."),
        ("-o/shard-00000-of-00002", "./-o"),
        ("gs://bucket/a/shard-00000-of-00002", "gs://bucket/a"),
    ],
)
def test_the_merge_that_a_shard_suggests_can_be_pasted(given: str, argument: str) -> None:
    stream = WatchedStream()
    report_written(Console(stream), Written(8, {}, 0, 96, place_of(given), Shard(0, 2)))
    said, _, command = stream.getvalue().splitlines()[-1].partition("join them with: ")
    assert f"shard 0/2 is in {given.replace('/a/my plans', '...')}; " in said
    assert shlex.split(command) == ["latentwire", "merge", argument, "-o", "DATASET"]


def test_the_inspection_that_a_run_suggests_can_be_pasted(
    collect: Collect, stub: StubReplica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As scripts name it, and yet no notice holds an absolute path.
    ended = collect("--output-dir", str(tmp_path / "my plans"), replicas=[stub])
    command = shlex.split(ended.stderr.splitlines()[-1].partition("look at it with: ")[2])
    assert command == ["latentwire", "inspect", "my plans"]
    assert inspect(command[2:]) == 0


@pytest.mark.parametrize("here", ["/", "home", "home/.."])
def test_no_notice_names_the_user_by_a_path_from_above_the_home(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / here)
    assert shown_path(home / "plans") == ".../plans"
    monkeypatch.chdir(home)
    assert shown_path(home / "plans") == "plans"
