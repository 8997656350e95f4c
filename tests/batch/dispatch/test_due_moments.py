"""What becomes due while the dispatcher looks for rows to start is not missed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from latentwire_batch.dispatch.dispatcher import Dispatcher
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica


# A run that misses it hangs.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [429, 500], ids=["overloaded replica", "failed row"])
def test_what_is_due_after_the_look_is_started(
    status: int,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Dispatcher._start_attempts

    def look_slowly(dispatcher: Dispatcher) -> None:
        look(dispatcher)
        due_s = [replica.cool_until_s for replica in dispatcher._fleet.replicas]
        due_s += [attempt.not_before_s for attempt in dispatcher._waiting]
        while time.monotonic() <= max(due_s):
            pass

    monkeypatch.setattr(Dispatcher, "_start_attempts", look_slowly)
    monkeypatch.setattr("latentwire.retry.INITIAL_RETRY_DELAY_S", 0.01)
    stub.behaviour.faults.extend([status] * 3)
    assert collect("--limit", "1", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks)[:1])
