from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from latentwire_batch.__main__ import main
from support.batch.collecting import Collect, Ended, WatchedStream, write_tasks
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica


@pytest.fixture
def stderr() -> WatchedStream:
    return WatchedStream()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks.jsonl", 40)


@pytest.fixture
def collect(tasks: Path, output: Path, stderr: WatchedStream) -> Collect:
    """Run `latentwire collect` on `tasks` into `output`, with seed 7 and short plans."""

    def run(*flags: str, replicas: list[StubReplica] | None = None) -> Ended:
        before = len(stderr.getvalue())
        args = ["--output-dir", str(output), "--max-new-tokens", "12"]
        args += [] if "--dataset" in flags else ["--dataset", str(tasks)]
        args += [part for stub in replicas or [] for part in ("--replica", stub.base_url)]
        args += [] if "--seed" in flags else ["--seed", "7"]
        with redirect_stderr(stderr):
            status = main([*args, *flags])
        return Ended(status, stderr.getvalue()[before:])

    return run


@pytest.fixture
def stub() -> Iterator[StubReplica]:
    with StubReplica() as replica:
        yield replica


@pytest.fixture
def other_stub() -> Iterator[StubReplica]:
    with StubReplica(Behaviour()) as replica:
        yield replica
