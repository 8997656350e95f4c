"""`collect --workers` as processes: what they make, and what is left when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

# For the start of processes on a busy machine.
_PATIENCE_S = 180.0
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tasks: Path, output: Path) -> Iterator[Start]:
    """Start a collection over stubs."""
    started: list[subprocess.Popen[str]] = []

    def run(*stubs: StubReplica, workers: int = 2) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks)]
        command += ["--output-dir", str(output), "--max-new-tokens", "12", "--seed", "7"]
        command += [part for stub in stubs for part in ("--replica", stub.base_url)]
        command += ["--workers", str(workers)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8"))
        return started[-1]

    yield run
    for process in started:
        for pid in workers_of(process):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the workers that run."""
    try:
        found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in found.split()]


def await_end_of(pids: list[int]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=_PATIENCE_S)
    return process.returncode, stderr


def is_full(stub: StubReplica) -> bool:
    """Whether the stub answers no row, and has as many as it may have."""
    is_stalled = len(stub.answered) >= (stub.stall_after or 0)
    return is_stalled and stub.num_in_flight == stub.behaviour.max_slots


def told_until(stream: IO[str], text: str) -> str:
    """Read what a process tells, up to the line with a text."""
    told = ""
    for line in stream:
        told += line
        if text in line:
            return told
    raise AssertionError(told)


def test_workers_make_the_dataset_of_one_process(start: Start, tasks: Path, output: Path) -> None:
    with StubReplica() as one, StubReplica() as other:
        # One row of each process, which both replicas refuse.
        refused = [tasks_of(tasks)[index][1] for index in (3, 4, 5)]
        for stub in (one, other):
            stub.behaviour.task_faults = {task: [422] * 9 for task in refused}
        status, stderr = ended(start(one, other, workers=3))
        lines = [line.removeprefix("latentwire collect: ") for line in stderr.splitlines()]
        assert status == 3, stderr
        # As with one process: each row once, and the sums of all.
        reason = "failed: prompt-too-long: scripted prompt-too-long"
        failed = [line for line in lines if line.endswith(reason)]
        assert sorted(failed) == [f"row {index} {reason}" for index in (3, 4, 5)]
        totals = [line for line in lines if " rows, " in line][-1]
        assert totals.startswith("40/40 rows, ")
        assert totals.endswith(" tokens/s, 3 failed")
        assert "37 rows are written; 3 failed" in lines
        assert "worker" not in stderr
        assert_complete(output, tasks_of(tasks), without=(3, 4, 5))
        # Together they fill the slots of a replica, and no more.
        assert one.most_in_flight <= one.behaviour.max_slots
        assert len(one.received) + len(other.received) == 40


def test_a_killed_worker_is_started_again(start: Start, tasks: Path, output: Path) -> None:
    with StubReplica() as stub:
        stub.stall_after = 6
        process = start(stub)
        assert stub.stalled.wait(_PATIENCE_S)
        (pid,) = workers_of(process)
        os.kill(pid, signal.SIGKILL)
        stub.resume()
        status, stderr = ended(process)
        assert (status, "worker 1 ended early and is started again" in stderr) == (0, True), stderr
        assert_complete(output, tasks_of(tasks))


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_interrupted_workers_resume_in_another_number(
    start: Start, tasks: Path, output: Path, number: signal.Signals
) -> None:
    with StubReplica() as stub:
        stub.stall_after = 8
        process = start(stub)
        # Both processes have rows in flight: all slots are taken.
        with stub.lock:
            assert stub.lock.wait_for(lambda: is_full(stub), timeout=_PATIENCE_S)
        pids = workers_of(process)
        assert len(pids) == 1
        process.send_signal(number)
        assert process.stderr is not None
        told = told_until(process.stderr, "finishing in-flight rows (")
        stub.resume()
        stderr = told + process.stderr.read()
        assert process.wait() == 130, stderr
        for told_once in ("finishing in-flight rows (", "interrupted; rerun the same command"):
            assert stderr.count(told_once) == 1, stderr
        assert "worker" not in stderr
        assert f"{len(stub.answered)}/40 rows, " in stderr
        await_end_of(pids)
        # Rows in flight were finished, by all workers.
        assert len(stub.answered) == len(stub.received) < 40
        status, stderr = ended(start(stub, workers=1))
        assert (status, "resuming" in stderr) == (0, True), stderr
        assert len(stub.received) == 40
        assert_complete(output, tasks_of(tasks))


@pytest.mark.slow
def test_workers_end_with_the_first_process(start: Start) -> None:
    with StubReplica() as stub:
        stub.stall_after = 6
        process = start(stub)
        assert stub.stalled.wait(_PATIENCE_S)
        pids = workers_of(process)
        process.kill()
        process.wait()
        await_end_of(pids)


@pytest.mark.slow
def test_a_worker_that_cannot_continue_ends_the_run(start: Start, output: Path) -> None:
    with StubReplica() as stub:
        stub.stall_after = 6
        process = start(stub)
        assert stub.stalled.wait(_PATIENCE_S)
        # From now on the replica refuses the key that nobody gave.
        stub.behaviour.api_key = "secret"
        stub.resume()
        status, stderr = ended(process)
        assert status in (1, 2), stderr
        assert (output / ".partial").exists()
        assert workers_of(process) == []
