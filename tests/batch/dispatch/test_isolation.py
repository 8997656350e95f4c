"""A row that ends replicas fails alone, whatever shares a replica with it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from latentwire_batch.config import CollectSettings
from latentwire_batch.dispatch.attempts import Attempt
from latentwire_batch.dispatch.isolation import MAX_LOST, Isolation, is_guilty, suspect
from latentwire_batch.tasks.rows import Row
from support.batch.collecting import Collect, write_tasks
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica

NUM_ROWS = 200
KILLERS = (0, 1, 77, 78, 199)
# Each death of a process costs its start, which takes a second with the real service.
FEW_ROWS, FEW_KILLERS = 100, (0, 77)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks.jsonl", NUM_ROWS)


@pytest.fixture
def killers(tasks: Path) -> frozenset[str]:
    return frozenset(tasks_of(tasks)[index][1] for index in KILLERS)


@pytest.fixture
def fast_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire_batch.replicas.fleet._MIN_PROBE_PAUSE_S", 0.01)
    monkeypatch.setattr("latentwire_batch.replicas.fleet._MAX_PROBE_PAUSE_S", 0.01)


@dataclass(frozen=True)
class Case:
    concurrency: int
    num_replicas: int = 1
    tells_why: bool = False


CASES = [
    Case(1),
    Case(4),
    Case(16),
    Case(64),
    Case(4, num_replicas=3),
    Case(16, num_replicas=2),
    Case(1, tells_why=True),
    Case(16, tells_why=True),
    Case(4, num_replicas=2, tells_why=True),
]


@pytest.fixture
def replicas(killers: frozenset[str]) -> Iterator[Callable[[Case], list[StubReplica]]]:
    with ExitStack() as running:

        def start(case: Case) -> list[StubReplica]:
            behaviour = Behaviour(
                killers=killers, restart_s=0.02, delay_s=0.005, tells_why=case.tells_why
            )
            return [
                running.enter_context(StubReplica(replace(behaviour)))
                for _ in range(case.num_replicas)
            ]

        yield start


@pytest.mark.usefixtures("fast_probes")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_the_rows_that_end_replicas_fail(
    collect: Collect,
    replicas: Callable[[Case], list[StubReplica]],
    output: Path,
    tasks: Path,
    case: Case,
) -> None:
    stubs = replicas(case)
    ended = collect("--concurrency", str(case.concurrency), replicas=stubs)
    assert ended.status == 3
    assert_complete(output, tasks_of(tasks), without=KILLERS)
    lines = (output / "failures.jsonl").read_text().splitlines()
    failures = [json.loads(line) for line in lines]
    assert [(failure["row"], failure["code"]) for failure in failures] == [
        (index, "ends-replica") for index in KILLERS
    ]
    # Of 64 rows, 16 share the next replica, then 4; then the row is alone twice.
    assert sum(stub.num_deaths for stub in stubs) <= len(KILLERS) * 5


@pytest.mark.usefixtures("fast_probes")
def test_retrying_the_failed_rows_sends_no_other_row(
    collect: Collect,
    replicas: Callable[[Case], list[StubReplica]],
    output: Path,
    tasks: Path,
) -> None:
    stubs = replicas(Case(16))
    assert collect("--concurrency", "16", replicas=stubs).status == 3
    stubs[0].received.clear()
    stubs[0].behaviour.killers = frozenset([tasks_of(tasks)[77][1]])
    assert collect("--retry-failed", replicas=stubs).status == 3
    assert set(stubs[0].received_ids()) == {f"t{index}" for index in KILLERS}
    assert_complete(output, tasks_of(tasks), without=(77,))


@pytest.mark.usefixtures("fast_probes")
def test_replicas_that_stay_away_keep_the_innocent_rows(
    collect: Collect, replicas: Callable[[Case], list[StubReplica]], output: Path, tasks: Path
) -> None:
    """Each run loses all its replicas. The next one sends the suspects last."""
    stubs = replicas(Case(4, num_replicas=2))
    num_runs = 0
    while True:
        num_runs += 1
        for stub in stubs:
            stub.behaviour.restart_s = None
            stub.revive()
        ended = collect("--replica-timeout", "0.3", replicas=stubs)
        if ended.status != 1:
            break
        assert "no replica has answered for 0.3 s" in ended.stderr
        assert num_runs < 5 * len(KILLERS)
    assert ended.status == 3
    assert_complete(output, tasks_of(tasks), without=KILLERS)


@pytest.mark.usefixtures("fast_probes")
def test_a_resumed_run_sends_the_suspects_last(
    collect: Collect, replicas: Callable[[Case], list[StubReplica]]
) -> None:
    (stub,) = replicas(Case(4))
    stub.behaviour.restart_s = None
    assert collect("--replica-timeout", "0.3", replicas=[stub]).status == 1
    stub.received.clear()
    stub.behaviour.killers = frozenset()
    stub.revive()
    assert collect("--concurrency", "4", replicas=[stub]).status == 0
    # At most four rows were in flight.
    assert "t0" in stub.received_ids()[-4:]


@pytest.mark.usefixtures("fast_probes")
@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_replicas_that_end_for_other_reasons_fail_no_row(
    collect: Collect,
    replicas: Callable[[Case], list[StubReplica]],
    output: Path,
    tasks: Path,
    concurrency: int,
) -> None:
    stubs = one, other = replicas(Case(concurrency, num_replicas=2))
    is_over = threading.Event()
    for stub in stubs:
        stub.behaviour.killers = frozenset()

    def kill_now_and_then() -> None:
        rng = random.Random(1)
        while not is_over.wait(0.1 + rng.random() * 0.2):
            with one.lock, other.lock:
                done = {*one.answered, *other.answered}
                arrived = one.num_arrived + other.num_arrived
                # On a busy machine, chance would end as many replicas with a row as make it guilty.
                # One that came before may be on its way again, to a replica that ends now.
                if all(arrived[task_id] < MAX_LOST - 1 for task_id in arrived.keys() - done):
                    rng.choice(stubs).die()

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    ended = collect("--concurrency", str(concurrency), replicas=stubs)
    is_over.set()
    killer.join()
    assert ended.status == 0
    assert_complete(output, tasks_of(tasks))


@pytest.mark.usefixtures("fast_probes")
def test_a_replica_that_always_ends_fails_no_row_while_another_serves(
    collect: Collect,
    replicas: Callable[[Case], list[StubReplica]],
    output: Path,
    tasks: Path,
) -> None:
    broken, whole = replicas(Case(4, num_replicas=2))
    broken.behaviour.killers = frozenset(task for _, task in tasks_of(tasks))
    whole.behaviour.killers = frozenset()
    assert collect(replicas=[broken, whole]).status == 0
    assert_complete(output, tasks_of(tasks))


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 16])
def test_own_replicas_are_restarted_until_the_rows_are_known(
    collect: Collect,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
    concurrency: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("latentwire_batch.replicas.local._RESTART_PAUSE_S", 0.01)
    killers = [tasks_of(tasks)[index][1] for index in FEW_KILLERS]
    flags = [part for task in killers for part in ("--killer", task)]

    def command(_: CollectSettings) -> tuple[str, ...]:
        return ("support.batch.stub_replica", "--delay", "0.01", *flags)

    monkeypatch.setattr("latentwire_batch.replicas.local_plan.serve_command", command)
    assert collect("--concurrency", str(concurrency)).status == 3
    assert_complete(output, tasks_of(tasks), without=FEW_KILLERS)


@pytest.mark.slow
@pytest.mark.usefixtures("fast_probes")
@pytest.mark.parametrize("concurrency", [64])
def test_the_real_service_is_restarted_until_the_rows_are_known(
    collect: Collect,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    concurrency: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("latentwire_batch.replicas.local._RESTART_PAUSE_S", 0.01)

    def command(_: CollectSettings) -> tuple[str, ...]:
        return ("support.batch.killer_service", "--host", "127.0.0.1", "--max-slots", "64")

    monkeypatch.setattr("latentwire_batch.replicas.local_plan.serve_command", command)
    tasks = [f"{'KILL' if i in FEW_KILLERS else 'Open window'} {i}" for i in range(FEW_ROWS)]
    lines = [json.dumps({"id": f"t{i}", "task": task}) for i, task in enumerate(tasks)]
    dataset = tmp_path / "fragile.jsonl"
    dataset.write_text("\n".join(lines))
    ended = collect("--dataset", str(dataset), "--concurrency", str(concurrency))
    assert ended.status == 3
    failures = (output / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in failures] == [*FEW_KILLERS]
    assert {json.loads(line)["code"] for line in failures} == {"ends-replica"}
    assert pq.read_table(output / "data.parquet").num_rows == FEW_ROWS - len(FEW_KILLERS)


def _attempts(count: int) -> list[Attempt]:
    return [Attempt(Row(index, f"t{index}", "task")) for index in range(count)]


@pytest.mark.parametrize("num_together", [1, 2, 3, 4, 5, 16, 17, 64, 1024])
def test_a_guilty_row_is_alone_after_few_losses(num_together: int) -> None:
    attempt = _attempts(1)[0]
    num_lost = 0
    together = num_together
    while attempt.suspicion is None or not is_guilty(attempt.suspicion):
        attempt = suspect(attempt, together)
        assert attempt.suspicion is not None
        together = attempt.suspicion.group_size
        num_lost += 1
    assert num_lost <= MAX_LOST + 4


def test_groups_share_no_replica_with_others_and_lose_no_row() -> None:
    isolation = Isolation()
    attempts = [suspect(attempt, 16) for attempt in _attempts(10)]
    for attempt in attempts:
        isolation.add(attempt)
    isolation.add(suspect(attempts[9], 1))
    sizes = []
    while isolation:
        sizes.append(len(list(isolation.take_group(limit=64))))
    assert sizes == [1, 4, 4, 2]
