from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.publish import finish_install, install
from support.batch.collecting import Collect, WatchedStream
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica

# For the start of a process on a busy machine.
_PATIENCE_S = 180.0


@pytest.fixture
def spawn(tasks: Path, output: Path) -> Iterator[object]:
    """Start a collector of its own process, which can be killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(stub: StubReplica) -> subprocess.Popen[bytes]:
        args = ["--dataset", str(tasks), "--output-dir", str(output), "--max-new-tokens", "12"]
        args += ["--seed", "7", "--replica", stub.base_url, "--concurrency", "2"]
        command = [sys.executable, "-m", "latentwire_batch", *args]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_collector_resumes_where_it_was(
    spawn: object, collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    assert callable(spawn)
    answered: set[str | None] = set()
    for num_answers in (6, 17, 29):
        stub.stall_after = num_answers
        process = spawn(stub)
        assert stub.stalled.wait(_PATIENCE_S)
        process.kill()
        process.wait()
        assert _num_sent_again(stub, answered) <= 2
        answered |= set(stub.answered)
        stub.resume()
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))
    assert len(answered) > 20
    assert _num_sent_again(stub, answered) <= 2


def _num_sent_again(stub: StubReplica, answered: set[str | None]) -> int:
    """Return how many answered rows a collector sent again: only its two in flight may be lost."""
    sent = set(stub.received_ids())
    stub.received.clear()
    return len(sent & answered)


def test_a_torn_tail_is_dropped_and_its_row_sent_again(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.die_after = 9
    assert collect("--replica-timeout", "0.2", replicas=[stub]).status == 1
    log = OutputLayout(output).log
    # The clock's record is last; cut it and one byte of the row before it.
    data = log.read_bytes()
    log.write_bytes(data[: data.rindex(b"LWR1", 0, data.rindex(b"LWR1")) + 40])
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def test_other_settings_are_refused_for_an_unfinished_output(
    collect: Collect, stub: StubReplica, other_stub: StubReplica
) -> None:
    stub.behaviour.die_after = 9
    assert collect("--replica-timeout", "0.2", replicas=[stub]).status == 1
    ended = collect("--top-k", "5", replicas=[other_stub])
    assert ended.status == 2
    assert "sampling.top_k was 0, now 5" in ended.stderr
    other_stub.behaviour.model = "another"
    ended = collect(replicas=[other_stub])
    assert ended.status == 2
    assert "model.model was 'stub', now 'another'" in ended.stderr
    assert collect("--overwrite", replicas=[other_stub]).status == 0


def test_one_interrupt_keeps_the_rows_in_flight(
    collect: Collect, stub: StubReplica, stderr: WatchedStream, output: Path, tasks: Path
) -> None:
    gate = stub.behaviour.gate = threading.Event()

    def interrupt() -> None:
        stub.arrived.wait(_PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)
        stderr.wait_for("finishing in-flight rows")
        gate.set()

    helper = threading.Thread(target=interrupt)
    helper.start()
    ended = collect(replicas=[stub])
    helper.join()
    assert ended.status == 130
    in_flight = stub.received_ids()
    assert 0 < len(in_flight) < 40
    stub.received.clear()
    assert collect(replicas=[stub]).status == 0
    assert not set(in_flight) & set(stub.received_ids())
    assert_complete(output, tasks_of(tasks))


def test_a_second_interrupt_ends_at_once(
    collect: Collect, stub: StubReplica, stderr: WatchedStream, output: Path, tasks: Path
) -> None:
    gate = stub.behaviour.gate = threading.Event()

    def interrupt_twice() -> None:
        stub.arrived.wait(_PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)
        stderr.wait_for("finishing in-flight rows")
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt_twice)
    helper.start()
    # Nothing is answered: only ending at once returns.
    ended = collect(replicas=[stub])
    helper.join()
    assert ended.status == 130
    gate.set()
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


@pytest.mark.parametrize("num_moved", range(4))
def test_an_installation_cut_short_is_completed(
    num_moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = OutputLayout(tmp_path)
    for directory, text in ((layout.root, "old"), (layout.staging, "new")):
        (directory / "hf_dataset").mkdir(parents=True)
        (directory / "hf_dataset" / "state.json").write_text(text)
        for name in ("data.parquet", "manifest.json"):
            (directory / name).write_text(text)
    (layout.root / "failures.jsonl").write_text("old")
    layout.log.write_text("rows")

    class PowerLoss(BaseException):
        pass

    real = os.replace
    moved: list[Path] = []

    def replace(source: Path, target: Path) -> None:
        if target != layout.marker:
            if len(moved) == num_moved:
                raise PowerLoss
            moved.append(target)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        if num_moved < 3:
            with pytest.raises(PowerLoss):
                install(layout)
        else:
            install(layout)
    finish_install(layout)
    assert (tmp_path / "data.parquet").read_text() == "new"
    assert (tmp_path / "hf_dataset" / "state.json").read_text() == "new"
    assert (tmp_path / "manifest.json").read_text() == "new"
    assert not (tmp_path / "failures.jsonl").exists()
    assert list(layout.partial.iterdir()) == []


def test_a_crash_before_assembling_needs_no_replica(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("latentwire_batch.collect.Assembly.run", _full_disk)
        ended = collect(replicas=[stub])
    assert ended.status == 1
    assert "No space left on device" in ended.stderr
    stub.behaviour.is_dead = True
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_retry_of_failed_rows_survives_a_crash(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    rows = tasks_of(tasks)
    stub.behaviour.task_faults = {task: [422] for _, task in rows[10:30]}
    assert collect(replicas=[stub]).status == 3
    stub.answered.clear()
    stub.behaviour.die_after = 5
    flags = ("--retry-failed", "--replica-timeout", "0.2", "--concurrency", "1")
    assert collect(*flags, replicas=[stub]).status == 1
    # What was there is still whole while the retry is unfinished.
    assert (output / "manifest.json").exists()
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    stub.received.clear()
    assert collect(*flags, replicas=[stub]).status == 0
    assert len(stub.received) == 15
    assert_complete(output, rows)
