"""One replica on Ray, without Ray: an engine, a ledger, and the log that it writes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.errors import api_error
from latentwire.protocol import ErrorBody
from latentwire_batch.compression.facts import CompressorFacts
from latentwire_batch.config import CollectSettings
from latentwire_batch.dispatch.seeds import Seeds
from latentwire_batch.dispatch.session import RowRequest
from latentwire_batch.errors import StorageError, UsageError, storage_error
from latentwire_batch.journal.open_store import open_store
from latentwire_batch.journal.record_log import Record, RecordLog
from latentwire_batch.journal.row_store import RowStore
from latentwire_batch.journal.segments.segments import Segments
from latentwire_batch.locations import Folder
from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.ranks.rank import ALONE
from latentwire_batch.ray import worker as worker_module
from latentwire_batch.ray.job import Job
from latentwire_batch.ray.ledger import Ledger
from latentwire_batch.ray.worker import Block, Worker
from latentwire_batch.tasks.results import RowState, Suspicion
from latentwire_batch.tasks.rows import Row
from support.batch.fake_engine import FakeEngine
from support.batch.stub_answers import latent, num_tokens, plan_text

ROWS = [Row(index, f"t{index}", f"task {index}") for index in range(6)]
SEEDS = Seeds(7)


class Handle:
    """A ledger in this process, called as Ray calls actors."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._numbers = count()

    def __getattr__(self, name: str) -> Any:
        class Method:
            remote = getattr(self.ledger, name)

        return Method

    def block(self, rows: Sequence[Row]) -> Block:
        """Read a block, as the driver does; return what a replica gets of it."""
        number = next(self._numbers)
        asyncio.run(self.ledger.give(number, rows))
        return {"id": np.array([number])}


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    layout = OutputLayout(tmp_path / "out")
    layout.partial.mkdir(parents=True)
    (layout.partial / "token").touch()
    return layout


@pytest.fixture(params=["a log that all nodes share", "segments in a store"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Folder | None:
    if request.param.startswith("a log"):
        return None
    folder = Folder(str(tmp_path / "store"))
    folder.write("token", b"1")
    return folder


@pytest.fixture
def handle() -> Handle:
    return Handle()


Start = Callable[..., Worker]


@pytest.fixture
def start(
    layout: OutputLayout, parts: Folder | None, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    workers: list[Worker] = []

    def run(
        engine: FakeEngine, suspicions: dict[int, Suspicion] | None = None, **given: Any
    ) -> Worker:
        monkeypatch.setattr(worker_module, "_open_engine", lambda _job: engine)
        settings = CollectSettings(dataset=("x",), output_dir=layout.root, **given)
        job = Job(
            settings=settings,
            root=layout.root,
            parts=parts,
            token="token",
            serve_flags=(),
            environ={},
            num_rows=len(ROWS),
            request=RowRequest(settings.k, settings.plan_options, SEEDS),
            compression=CompressorFacts(),
        )
        asyncio.run(handle.ledger.open(np.ones(len(ROWS), dtype=np.bool_), suspicions or {}))
        workers.append(Worker(job, handle, lambda: "actor"))
        return workers[-1]

    yield run
    for worker in workers:
        worker.close()
        assert not asyncio.all_tasks(worker._loop)


@pytest.fixture
def stored(layout: OutputLayout, parts: Folder | None) -> Callable[[], RowStore]:
    """Return the rows as the driver reads them."""
    segments = None if parts is None else Segments(parts)
    return lambda: open_store(layout, len(ROWS), ALONE, None, False, segments=segments)


def refuse(code: str, status: int, field: str | None = None) -> Callable[[], None]:
    def call() -> None:
        body = {"title": "t", "status": status, "code": code, "detail": "why", "field": field}
        raise api_error(ErrorBody.model_validate(body))

    return call


def test_rows_stand_in_the_log_as_collect_writes_them(
    start: Start, handle: Handle, stored: Callable[[], RowStore]
) -> None:
    worker = start(FakeEngine())
    worker(handle.block(ROWS[:4]))
    # As when Ray sends a block again.
    worker(handle.block(ROWS[2:]))
    store = stored()
    assert store.count(RowState.FINISHED) == len(ROWS)
    for row in ROWS:
        seed = SEEDS.of_row(row.index)
        kept = store.read(row.index)
        assert (kept.text.plan, kept.seed) == (plan_text(row.task, seed), seed)
        count = num_tokens(row.task, seed, kept.completion_tokens)
        matrix = np.empty((kept.num_steps, 8), np.float32)
        store.read_matrices_into(row.index, [matrix])
        assert np.array_equal(matrix, latent(row.task, seed, kept.num_steps, 8))
        assert count <= kept.num_steps
    store.close()


def test_a_row_is_sent_once_however_often_its_block_comes(start: Start, handle: Handle) -> None:
    engine = FakeEngine()
    worker = start(engine)
    block = handle.block(ROWS)
    for again in (block, block, handle.block(ROWS)):
        assert worker(again) == again
    assert sorted(engine.sent) == [row.task for row in ROWS]


def test_a_replica_waits_for_the_rows_of_one_block_at_a_time(
    start: Start, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait for rows must not be all that Ray runs of the ledger."""
    waiting, most = set[int](), 0
    take = handle.ledger.take

    async def watched(number: int) -> Sequence[Row]:
        nonlocal most
        waiting.add(number)
        most = max(most, len(waiting))
        await asyncio.sleep(0.01)
        waiting.remove(number)
        return await take(number)

    monkeypatch.setattr(handle.ledger, "take", watched)
    engine = FakeEngine()
    worker = start(engine)
    blocks = [handle.block([row]) for row in ROWS]
    with ThreadPoolExecutor(len(blocks)) as threads:
        assert list(threads.map(worker, blocks)) == blocks
    assert most == 1
    assert sorted(engine.sent) == [row.task for row in ROWS]


def test_rows_fail_as_over_http(
    start: Start, handle: Handle, stored: Callable[[], RowStore]
) -> None:
    engine = FakeEngine(
        special={
            "task 1": refuse("prompt-too-long", 422),
            "task 2": refuse("deadline-exceeded", 504),
        }
    )
    start(engine, max_retries=0)(handle.block(ROWS))
    store = stored()
    assert [(failed.index, failed.code) for failed in store.failed_rows()] == [
        (1, "prompt-too-long"),
        (2, "deadline-exceeded"),
    ]
    assert store.count(RowState.FINISHED) == 4
    store.close()


def test_a_setting_that_the_engine_refuses_stops_the_run(start: Start, handle: Handle) -> None:
    worker = start(FakeEngine(special={"task 3": refuse("invalid-request", 422, "top_k")}))
    with pytest.raises(UsageError, match="--top-k"):
        worker(handle.block(ROWS))
    events = asyncio.run(handle.ledger.take_events())
    (refusal,) = [event.refusal for event in events if event.kind == "refused"]
    assert refusal[0] == "usage"
    assert refusal[1].startswith("--top-k: a replica refuses it (why)")


def test_suspects_run_alone_and_those_that_are_guilty_do_not_run(
    start: Start, handle: Handle, stored: Callable[[], RowStore]
) -> None:
    engine = FakeEngine()
    suspicions = {0: Suspicion(1, 3, 2), 1: Suspicion(1, 2, 1), 2: Suspicion(2, 2, 0)}
    start(engine, suspicions)(handle.block(ROWS))
    assert "task 0" not in engine.sent
    assert engine.together["task 1"] == {"task 1"}
    assert engine.together["task 2"] == {"task 2"}
    assert engine.together["task 3"] == {"task 3", "task 4", "task 5"}
    store = stored()
    assert [(failed.index, failed.code) for failed in store.failed_rows()] == [(0, "ends-replica")]
    store.close()


def test_an_engine_that_has_ended_ends_the_process_with_the_rows_that_it_had(
    start: Start, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    running: list[set[int]] = []

    def end() -> None:
        running.append(set(handle.ledger._running))
        raise Ended

    monkeypatch.setattr(worker_module, "_end_process", end)
    engine = FakeEngine(special={"task 2": refuse("not-ready", 503)})
    with pytest.raises(Ended):
        start(engine, concurrency=2)(handle.block(ROWS))
    # Two slots: the rows that had ended and those that waited are not suspected.
    assert running[0] == {2, 3}


def test_a_node_that_does_not_see_the_place_of_the_rows_is_refused(
    start: Start, layout: OutputLayout, parts: Folder | None, handle: Handle
) -> None:
    if parts is None:
        (layout.partial / "token").unlink()
    else:
        parts.remove(["token"])
    with pytest.raises(UsageError, match="--output-dir: node .* does not see"):
        start(FakeEngine())
    (event,) = asyncio.run(handle.ledger.take_events())
    assert event.refusal[0] == "usage"


@pytest.mark.parametrize("parts", [None])
def test_a_full_disk_of_the_shared_directory_is_named_by_its_flag(
    start: Start, handle: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_log: RecordLog, _records: Sequence[Record]) -> None:
        raise storage_error("cannot be written", OSError(errno.EDQUOT, "x"))

    worker = start(FakeEngine())
    monkeypatch.setattr(RecordLog, "append_all", fail)
    with pytest.raises(StorageError, match="^--output-dir: the output cannot be written"):
        worker(handle.block(ROWS))
    events = asyncio.run(handle.ledger.take_events())
    (refusal,) = [event.refusal for event in events if event.kind == "refused"]
    reason = f"--output-dir: the output cannot be written: {os.strerror(errno.EDQUOT)}"
    assert refusal == ("storage", f"{reason}; make room there, and rerun the same command")


def test_latents_are_stored_in_the_wanted_form(
    start: Start, handle: Handle, stored: Callable[[], RowStore]
) -> None:
    start(FakeEngine(), storage_dtype="int8")(handle.block(ROWS))
    store = stored()
    shapes = store.read(0).shapes
    assert shapes is not None
    assert list(map(list, shapes)) == [[store.read(0).num_steps, 8]]
    store.close()
