from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

KIB = 1 << 10


@pytest.fixture
def mounted(output: Path) -> Iterator[Path]:
    """Mount a file system of 96 KiB on the output directory."""
    output.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={96 * KIB}", "tmpfs", str(output)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a tmpfs")
    yield output
    subprocess.run(["umount", str(output)], check=True)


def remount(output: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(output)], check=True)


def test_a_full_disk_is_named_and_a_rerun_with_room_completes(
    collect: Collect, stub: StubReplica, mounted: Path, tasks: Path
) -> None:
    stub.behaviour.hidden_size = 512
    ended = collect("--concurrency", "2", replicas=[stub])
    assert ended.status == 1
    reason = "--output-dir: the output cannot be written: No space left on device"
    assert f"{reason}; this run needs about " in ended.stderr
    assert not (mounted / "manifest.json").exists()
    answered = set(stub.answered)
    remount(mounted, "size=16m")
    stub.received.clear()
    assert collect(replicas=[stub]).status == 0
    # Only the answers to the two rows in flight may be lost, and these need not be the last ones.
    assert len(answered & set(stub.received_ids())) <= 2 < len(answered)
    assert_complete(mounted, tasks_of(tasks), hidden_size=512)


def test_a_disk_that_fills_up_in_the_assembly_keeps_every_row(
    collect: Collect, stub: StubReplica, mounted: Path, tasks: Path
) -> None:
    stub.behaviour.hidden_size = 64
    ended = collect("--concurrency", "2", replicas=[stub])
    assert ended.status == 1
    assert "No space left on device" in ended.stderr
    assert len(stub.answered) == 40
    remount(mounted, "size=16m")
    stub.behaviour.is_dead = True
    assert collect(replicas=[stub]).status == 0
    assert_complete(mounted, tasks_of(tasks), hidden_size=64)


def test_a_read_only_output_is_named_and_a_rerun_completes(
    collect: Collect, stub: StubReplica, mounted: Path, tasks: Path
) -> None:
    remount(mounted, "ro,size=16m")
    ended = collect(replicas=[stub])
    assert ended.status == 1
    assert "--output-dir: the output cannot be written: Read-only file system" in ended.stderr
    assert not stub.received
    remount(mounted, "rw")
    assert collect(replicas=[stub]).status == 0
    assert_complete(mounted, tasks_of(tasks))
