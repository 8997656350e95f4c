"""A session over any source of replicas and any store: no child process, no file."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from latentwire import AsyncClient
from latentwire_batch.console import Console
from latentwire_batch.dispatch.seeds import Seeds, row_seed
from latentwire_batch.dispatch.session import RowRequest, SessionPlan, run_session
from latentwire_batch.errors import InputError, ReplicasLostError, UsageError
from latentwire_batch.replicas.fleet import FleetSummary
from latentwire_batch.replicas.identity import ModelIdentity
from latentwire_batch.replicas.replica import Replica
from latentwire_batch.replicas.source import new_client
from latentwire_batch.tasks.results import (
    FailedRow,
    FinishedRow,
    RowState,
    Suspicion,
    UnconfirmedLoss,
)
from latentwire_batch.tasks.rows import Row
from support.batch.stub_answers import plan_text
from support.batch.stub_replica import StubReplica

ROWS = [Row(index, f"t{index}", f"task {index}") for index in range(12)]


@dataclass
class FakeSource:
    """Replicas as a cluster's scheduler would provide them: some now, some later, or none."""

    stubs: list[StubReplica]
    later: list[StubReplica] = field(default_factory=list)
    patience_s: float = 30.0
    start_error: Exception | None = None
    watch_error: Exception | None = None
    events: list[str] = field(default_factory=list)
    num_progress: int = 0

    async def start(self) -> list[str]:
        self.events.append("start")
        if self.start_error is not None:
            raise self.start_error
        return [stub.base_url for stub in self.stubs]

    def connect(self, url: str) -> AsyncClient:
        return new_client(url, timeout_s=30.0)

    def note_ready(self) -> None:
        self.events.append("ready")

    def note_progress(self) -> None:
        self.num_progress += 1

    async def watch(self, add: Callable[[str], None]) -> None:
        for stub in self.later:
            add(stub.base_url)
        if self.watch_error is not None:
            await asyncio.to_thread(self.stubs[0].arrived.wait, 30)
            raise self.watch_error
        await asyncio.Event().wait()

    async def stop(self, at_once: bool) -> None:
        self.events.append(f"stop at_once={at_once}")


class MemoryStore:
    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.finished: dict[int, FinishedRow] = {}
        self.failed: dict[int, FailedRow] = {}
        self.suspicions: dict[int, Suspicion | None] = {}
        self.num_syncs = 0

    def is_pending(self, index: int) -> bool:
        return index not in self.finished and index not in self.failed

    def count(self, state: RowState) -> int:
        pending = sum(map(self.is_pending, range(self.num_rows)))
        return {RowState.PENDING: pending, RowState.ELSEWHERE: 0, RowState.OUTSIDE: 0}[state]

    def suspicion(self, index: int) -> Suspicion | None:
        return self.suspicions.get(index)

    def add_suspect(self, index: int, suspicion: Suspicion | None) -> None:
        self.suspicions[index] = suspicion

    def add_all_finished(self, finished: Sequence[FinishedRow]) -> None:
        self.finished |= {each.row.index: each for each in finished}

    def add_failed(self, failed: FailedRow) -> None:
        self.failed[failed.index] = failed

    def add_elapsed(self, elapsed_s: float) -> None:
        assert elapsed_s >= 0

    def sync(self) -> None:
        self.num_syncs += 1


def run(source: FakeSource, store: MemoryStore, rows: list[Row] = ROWS) -> FleetSummary:
    async def open_store(identity: ModelIdentity) -> MemoryStore:
        assert identity == ModelIdentity("stub", None, 8, "float32", {}, "latentwire")
        return store

    def read() -> Iterator[Row]:
        return iter(rows)

    plan = SessionPlan(
        rows=read,
        request=RowRequest(k=None, options={"max_new_tokens": 4}, seeds=Seeds(7)),
        source=source,
        open_store=open_store,
        concurrency=None,
        max_retries=0,
    )
    return asyncio.run(run_session(plan, Console(io.StringIO())))


def test_all_rows_of_any_source_reach_any_store(stub: StubReplica, other_stub: StubReplica) -> None:
    source, store = FakeSource([stub, other_stub]), MemoryStore(12)
    assert run(source, store) == FleetSummary(count=2, devices=("cpu",), versions=("0",))
    assert {index: row.plan for index, row in store.finished.items()} == {
        index: plan_text(f"task {index}", row_seed(7, index)) for index in range(12)
    }
    assert store.num_syncs > 0
    assert source.events == ["start", "ready", "stop at_once=False"]


def test_rows_that_the_store_has_are_not_sent(stub: StubReplica) -> None:
    store = MemoryStore(12)
    run(FakeSource([stub]), store)
    del store.finished[3], store.finished[11]
    stub.received.clear()
    run(FakeSource([stub]), store)
    assert sorted(map(str, stub.received_ids())) == ["t11", "t3"]


def test_a_replica_that_the_source_reports_later_gets_rows(
    stub: StubReplica, other_stub: StubReplica
) -> None:
    stub.stall_after = 2
    store = MemoryStore(12)

    def resume() -> None:
        other_stub.wait_answered(3)
        stub.resume()

    helper = threading.Thread(target=resume)
    helper.start()
    summary = run(FakeSource([stub], later=[other_stub]), store)
    helper.join()
    assert summary.count == 2
    assert len(store.finished) == 12


def test_a_source_that_cannot_start_is_stopped(stub: StubReplica) -> None:
    source = FakeSource([stub], start_error=UsageError("no quota"))
    with pytest.raises(UsageError, match="no quota"):
        run(source, MemoryStore(12))
    assert source.events == ["start", "stop at_once=False"]


def test_a_source_that_loses_its_replicas_ends_the_session(stub: StubReplica) -> None:
    stub.behaviour.gate = threading.Event()
    source = FakeSource([stub], watch_error=ReplicasLostError("evicted"))
    with pytest.raises(ReplicasLostError, match="evicted"):
        run(source, MemoryStore(12))
    assert source.events == ["start", "ready", "stop at_once=False"]


# When an earlier run sent a row, seconds from now: the replica has started now.
BEFORE_S, AFTER_S = -3600.0, 3600.0


@pytest.mark.parametrize(
    ("known", "is_elsewhere", "sent_s", "is_failed", "left"),
    [
        pytest.param((1, 2, 1), False, BEFORE_S, True, None, id="third end"),
        pytest.param((4, 1, 0), False, BEFORE_S, False, (1, 2, 1), id="second end"),
        pytest.param((1, 2, 1), False, AFTER_S, False, None, id="the replica lives"),
        pytest.param((1, 2, 1), True, BEFORE_S, True, None, id="third end, new address"),
        pytest.param((4, 1, 0), True, AFTER_S, False, (4, 1, 0), id="not known"),
        pytest.param((4, 0, 0), True, AFTER_S, False, None, id="not known, never lost"),
    ],
)
def test_a_loss_that_an_earlier_run_could_not_confirm_is_judged_first(
    stub: StubReplica,
    known: tuple[int, int, int],
    is_elsewhere: bool,
    sent_s: float,
    is_failed: bool,
    left: tuple[int, int, int] | None,
) -> None:
    store = MemoryStore(12)
    key = Replica(0, new_client(stub.base_url, 1.0), stub.base_url).key
    loss = UnconfirmedLoss(1, time.time() + sent_s, "elsewhere" if is_elsewhere else key)
    store.suspicions[0] = Suspicion(*known, loss)
    run(FakeSource([stub]), store)
    assert (set(store.failed), len(store.finished)) == ({0} if is_failed else set(), 12 - is_failed)
    assert ("t0" in stub.received_ids()) is not is_failed
    if is_failed:
        assert store.failed[0].code == "ends-replica"
    else:
        assert store.suspicions[0] == (None if left is None else Suspicion(*left))


def test_a_row_that_an_earlier_version_suspected_is_sent_last(stub: StubReplica) -> None:
    """That version did not tell which losses were confirmed."""
    stub.behaviour.max_slots = 1
    store = MemoryStore(12)
    store.suspicions[0] = Suspicion(1, 3, 2)
    run(FakeSource([stub]), store)
    assert stub.received_ids()[-1] == "t0"
    assert len(store.finished) == 12


@pytest.mark.parametrize(("num_read", "word"), [(11, "fewer"), (13, "more")])
def test_an_input_that_changed_is_refused(stub: StubReplica, num_read: int, word: str) -> None:
    rows = [*ROWS, Row(12, "t12", "task 12")][:num_read]
    with pytest.raises(InputError, match=f"{word} rows than when it was first read"):
        run(FakeSource([stub]), MemoryStore(12), rows)
