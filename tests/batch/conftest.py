from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from latentwire_batch.__main__ import main
from latentwire_batch.replicas.fleet import Fleet
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.probe import _PATIENCE_S
from support.batch.collecting import Collect, Ended, WatchedStream, write_tasks
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica


@pytest.fixture
def patience_at_start() -> float:
    """Seconds that a run waits for its first replica at least.

    Tests whose replicas end set `--replica-timeout` to parts of a second. On a busy machine, the
    first answer of a replica that serves may take longer.
    """
    return 60.0


@pytest.fixture(autouse=True)
def _a_slow_start_is_no_loss(patience_at_start: float, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = Fleet.connect

    async def patiently(fleet: Fleet, patience_s: float) -> ModelIdentity:
        # A finished dataset needs no replica: the look at what one serves is short.
        if patience_s != _PATIENCE_S:
            patience_s = max(patience_s, patience_at_start)
        return await connect(fleet, patience_s)

    monkeypatch.setattr(Fleet, "connect", patiently)
    # Where several replicas are given, all of them get rows from the start.
    monkeypatch.setattr("latentwire_batch.replicas.fleet._GRACE_S", 60.0)


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
