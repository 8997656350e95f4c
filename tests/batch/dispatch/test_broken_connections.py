"""A row whose connection breaks while its replica lives on is not blamed for an end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from latentwire_batch.dispatch.broken import has_ended
from latentwire_batch.dispatch.isolation import MAX_LOST
from latentwire_batch.receiving.connection import Answer
from latentwire_batch.receiving.connections import Connections
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.replicas.source import new_client
from latentwire_batch.tasks.results import UnconfirmedLoss
from support.batch.collecting import Collect, write_tasks
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica
from support.network.cutting_proxy import Cut, CuttingProxy

MARKER = b'"task_id":"t1"'
RETRIES = 3


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks.jsonl", 6)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.retry.INITIAL_RETRY_DELAY_S", 0.01)
    monkeypatch.setattr("latentwire_batch.replicas.fleet._MIN_PROBE_PAUSE_S", 0.01)


def shorten_silence(proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for an answer that is cut for parts of a second; a busy machine is late with others."""
    exchange = Connections.exchange

    async def short(
        connections: Connections, request: bytes, timeout_s: float, *args: Any
    ) -> Answer:
        is_cut = MARKER in request and proxy.cuts_left > 0
        return await exchange(connections, request, 0.3 if is_cut else timeout_s, *args)

    monkeypatch.setattr(Connections, "exchange", short)


@pytest.mark.parametrize(
    ("cut", "code", "states_uptime", "concurrency"),
    [
        ("before-head", "connection-failed", True, 4),
        ("before-head", "connection-failed", False, 1),
        ("in-head", "connection-failed", True, 1),
        ("in-body", "connection-failed", True, 1),
        ("reset", "connection-failed", True, 1),
        ("refused", "connection-failed", True, 1),
        ("refused", "connection-failed", True, 4),
        ("silent", "timeout", True, 1),
    ],
)
def test_a_broken_connection_to_a_living_replica_is_retried_and_fails_as_such(
    cut: Cut,
    code: str,
    states_uptime: bool,
    concurrency: int,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stub.behaviour.states_uptime = states_uptime
    flags = ["--concurrency", str(concurrency), "--max-retries", str(RETRIES)]
    with CuttingProxy(stub.port, MARKER, cut, num_cuts=99) as proxy:
        if cut == "silent":
            shorten_silence(proxy, monkeypatch)
        ended = collect(*flags, "--replica", proxy.base_url)
        assert ended.status == 3, ended.stderr
        assert proxy.num_cut == RETRIES + 1
        assert_complete(output, tasks_of(tasks), without=(1,))
        (failure,) = map(json.loads, (output / "failures.jsonl").read_text().splitlines())
        assert (failure["row"], failure["code"]) == (1, code)
        assert "ends-replica" not in ended.stderr
        # The network gets better.
        proxy.cuts_left = RETRIES - 1
        assert collect(*flags, "--retry-failed", "--replica", proxy.base_url).status == 0
        assert proxy.cuts_left == 0
        assert_complete(output, tasks_of(tasks))


def test_an_unreachable_replica_ends_the_run_and_fails_no_row(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    """More often than a row may end replicas, and alone with the replica, too."""
    for concurrency in ("4", "1", "1", "1"):
        # Each one has another address.
        with CuttingProxy(stub.port, MARKER, "refused", num_cuts=1) as proxy:
            # It does not come back in time.
            proxy.away_s = math.inf
            flags = ("--replica-timeout", "0.2", "--concurrency", concurrency)
            ended = collect(*flags, "--replica", proxy.base_url)
            assert ended.status == 1, ended.stderr
            assert "no replica has answered for 0.2 s; finished rows are kept" in ended.stderr
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def test_a_row_that_ends_the_only_replica_of_each_run_fails(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    """Each run loses its replica, and cannot tell why. The next one finds another process there."""
    task_id, task = tasks_of(tasks)[1]
    stub.behaviour.killers, stub.behaviour.restart_s = frozenset({task}), None
    flags = ("--replica-timeout", "0.2", "--concurrency", "1")
    for _ in range(MAX_LOST):
        assert collect(*flags, replicas=[stub]).status == 1
        stub.revive()
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 3, ended.stderr
    assert "row 1 failed: ends-replica" in ended.stderr
    assert stub.num_arrived[task_id] == stub.num_deaths == MAX_LOST
    assert_complete(output, tasks_of(tasks), without=(1,))


def replica_at(url: str) -> Replica:
    return Replica(0, new_client(url, 1.0), url)


OWN, OTHER, THIRD = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))


@pytest.mark.parametrize(
    ("uptimes_s", "is_end"),
    [
        # Of the processes that answer at an address, one after the other; None: not stated. The row
        # was sent 100 s ago to OWN.
        pytest.param({OWN: [150.0]}, False, id="lives"),
        pytest.param({OWN: [50.0]}, True, id="replaced"),
        pytest.param({OWN: [50.0], OTHER: [150.0]}, True, id="replaced, next to an older one"),
        pytest.param({OWN: [150.0], OTHER: [50.0]}, False, id="lives, next to a younger one"),
        pytest.param({OWN: [150.0, 5.0]}, False, id="ended later"),
        pytest.param({OWN: [], OTHER: [50.0], THIRD: [9.0]}, True, id="away, others younger"),
        pytest.param({OTHER: [50.0], THIRD: [150.0]}, None, id="elsewhere, one older"),
        pytest.param({OTHER: [150.0]}, None, id="elsewhere, older"),
        pytest.param({OWN: [None]}, None, id="no uptime"),
        pytest.param({OWN: [None, 5.0]}, None, id="no uptime at first"),
        pytest.param({OWN: []}, None, id="no answer"),
    ],
)
def test_the_next_run_tells_whether_a_replica_ended(
    uptimes_s: dict[str, list[float | None]],
    is_end: bool | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The clocks of two runs have nothing in common but the time of the day.
    clock = Clock()
    monkeypatch.setattr("latentwire_batch.dispatch.broken.time.monotonic", lambda: clock.now_s)
    monkeypatch.setattr("latentwire_batch.dispatch.broken.time.time", lambda: 5e8)
    loss = UnconfirmedLoss(1, 5e8 - 100.0, replica_at(OWN).key)
    replicas = [replica_at(url) for url in uptimes_s]
    for replica, answers in zip(replicas, uptimes_s.values(), strict=True):
        for uptime_s in answers:
            replica.note_life(uptime_s, clock.now_s)
    assert has_ended(loss, replicas) is is_end


class Clock:
    now_s = 1000.0


@pytest.mark.parametrize(
    ("first", "then", "has_ended"),
    [
        # (uptime that /info states, seconds that its answer takes); the row is sent at 1000 s, and
        # breaks at 1010 s.
        pytest.param((50.0, 0.0), (61.0, 0.0), False, id="lives"),
        pytest.param((50.0, 0.0), (61.0, 30.0), False, id="lives, slow answer"),
        pytest.param((0.5, 0.4), (12.5, 3.0), False, id="young, slow answer"),
        pytest.param((50.0, 0.0), (2.0, 0.0), True, id="started again"),
        pytest.param((50.0, 0.0), (0.0, 0.0), True, id="just started"),
        pytest.param((50.0, 0.0), (31.0, 0.0), False, id="gateway, younger replica"),
        pytest.param((50.0, 0.0), (5000.0, 0.0), False, id="gateway, older replica"),
        pytest.param((None, 0.0), (None, 0.0), False, id="no uptime, was never absent"),
        pytest.param((50.0, 0.0), (None, 0.0), False, id="no uptime any more"),
    ],
)
def test_uptime_tells_whether_a_replica_ended(
    first: tuple[float | None, float],
    then: tuple[float | None, float],
    has_ended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("latentwire_batch.replicas.replica.time.monotonic", lambda: clock.now_s)
    replica = replica_at("http://127.0.0.1:1")
    for now_s, (uptime_s, takes_s) in ((999.0, first), (1011.0, then)):
        assert replica.has_ended_since(1000.0, 1010.0) is None
        clock.now_s = now_s + takes_s
        replica.note_life(uptime_s, now_s)
    assert replica.has_ended_since(1000.0, 1010.0) is has_ended
