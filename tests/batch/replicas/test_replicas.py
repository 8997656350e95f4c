from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import latentwire
from latentwire import AsyncClient
from latentwire.protocol import InfoResponse, Limits
from latentwire_batch.dispatch.isolation import MAX_LOST
from latentwire_batch.errors import UsageError
from latentwire_batch.replicas.endpoints import discover, resolve_endpoints
from latentwire_batch.replicas.replica import default_window
from support.batch.collecting import Collect, WatchedStream
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica


def test_a_replica_that_dies_loses_and_doubles_no_row(
    collect: Collect,
    stub: StubReplica,
    other_stub: StubReplica,
    stderr: WatchedStream,
    output: Path,
    tasks: Path,
) -> None:
    stub.behaviour.die_after = 5
    other_stub.behaviour.gate = gate = threading.Event()

    def answer_after_the_death() -> None:
        stderr.wait_for("replica 0 does not answer; its rows are sent again")
        gate.set()

    helper = threading.Thread(target=answer_after_the_death)
    helper.start()
    ended = collect(replicas=[stub, other_stub])
    helper.join()
    assert ended.status == 0
    assert_complete(output, tasks_of(tasks))
    assert len(other_stub.answered) + 5 == 40


def test_a_replica_that_comes_back_is_used_again(
    collect: Collect, stub: StubReplica, stderr: WatchedStream, output: Path, tasks: Path
) -> None:
    stub.behaviour.die_after = 5

    def revive() -> None:
        stderr.wait_for("does not answer")
        stub.behaviour.die_after = None
        stub.behaviour.is_dead = False

    helper = threading.Thread(target=revive)
    helper.start()
    ended = collect(replicas=[stub])
    helper.join()
    assert ended.status == 0
    assert "replica 0 is ready" in ended.stderr
    assert_complete(output, tasks_of(tasks))


def test_a_run_without_replicas_ends_and_keeps_its_rows(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.die_after = 7
    ended = collect("--replica-timeout", "0.3", replicas=[stub])
    assert ended.status == 1
    assert "no replica has answered for 0.3 s" in ended.stderr
    done = set(stub.answered)
    stub.received.clear()
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    assert collect(replicas=[stub]).status == 0
    assert not done & set(stub.received_ids())
    assert_complete(output, tasks_of(tasks))


def test_a_replica_of_another_model_is_refused_by_name(
    collect: Collect, stub: StubReplica, other_stub: StubReplica, output: Path
) -> None:
    other_stub.behaviour.hidden_size = 16
    ended = collect(replicas=[stub, other_stub])
    assert ended.status == 2
    assert (
        "replica 1 serves 'stub' (hidden size 16, float32, engine latentwire), "
        "but replica 0 serves 'stub' (hidden size 8, float32, engine latentwire)"
    ) in ended.stderr
    assert not output.exists()


def test_a_failed_row_is_tried_on_another_replica(
    collect: Collect, stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.faults.append(500)
    assert collect(replicas=[stub, other_stub]).status == 0
    assert stub.received_ids()[0] in other_stub.received_ids()
    assert_complete(output, tasks_of(tasks))


def test_a_row_that_keeps_failing_is_given_up_after_max_retries(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    task_id, task = tasks_of(tasks)[2]
    stub.behaviour.task_faults = {task: [500] * 9}
    ended = collect("--max-retries", "1", replicas=[stub])
    assert ended.status == 3
    assert "row 2 failed: internal" in ended.stderr
    assert stub.received_ids().count(task_id) == 2
    assert_complete(output, tasks_of(tasks), without=(2,))


def test_a_full_queue_slows_down_and_fails_nothing(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.faults.extend([429] * 30)
    assert collect("--max-retries", "0", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def test_a_draining_replica_costs_no_tries(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.faults.extend([503] * 6)
    assert collect("--max-retries", "0", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def test_a_latent_that_is_not_finite_never_gets_in(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    stub.behaviour.nan_tasks = {tasks_of(tasks)[4][1]}
    ended = collect("--max-retries", "0", replicas=[stub])
    assert ended.status == 3
    assert "row 4 failed: protocol" in ended.stderr
    assert_complete(output, tasks_of(tasks), without=(4,))


def test_a_row_that_takes_replicas_down_with_it_is_given_up(
    collect: Collect, stub: StubReplica, tasks: Path
) -> None:
    task_id, task = tasks_of(tasks)[0]
    stub.behaviour.killers = frozenset({task})
    ended = collect("--concurrency", "1", "--limit", "2", replicas=[stub])
    assert ended.status == 3
    assert "row 0 failed: ends-replica" in ended.stderr
    assert stub.received_ids().count(task_id) == MAX_LOST


def test_a_row_that_ends_the_engine_each_time_is_given_up(
    collect: Collect, stub: StubReplica, tasks: Path
) -> None:
    task_id, task = tasks_of(tasks)[0]
    stub.behaviour.task_faults = {task: [503] * 100}
    ended = collect("--concurrency", "1", "--limit", "2", replicas=[stub])
    assert ended.status == 3
    assert "row 0 failed: not-ready" in ended.stderr
    assert stub.received_ids().count(task_id) == 30


def test_a_key_is_sent_and_a_wrong_one_is_bad_usage(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    stub.behaviour.api_key = "right"
    ended = collect("--api-key", "wrong", replicas=[stub])
    assert ended.status == 2
    assert "--api-key: replica 0 rejected the key" in ended.stderr
    assert "wrong" not in ended.stderr
    assert not (output / "data.parquet").exists()
    assert collect("--overwrite", "--api-key", "right", replicas=[stub]).status == 0


@pytest.mark.parametrize("field", ["date", "min_p", "top_p"])
def test_a_setting_that_a_replica_refuses_ends_the_run(
    collect: Collect, stub: StubReplica, output: Path, field: str
) -> None:
    """Every row would fail alike, as with a service of an earlier version."""
    stub.behaviour.refused_field = field
    ended = collect("--min-p", "0.1", replicas=[stub])
    assert ended.status == 2
    flag = "--" + field.replace("_", "-")
    assert (
        f"{flag}: replica 0 refuses it (scripted invalid-request); it is latentwire 0, and this is "
        f"{latentwire.__version__}"
    ) in ended.stderr
    assert len(stub.received) <= 4
    assert not (output / "data.parquet").exists()
    stub.behaviour.refused_field = None
    assert collect("--min-p", "0.1", replicas=[stub]).status == 0


def test_a_task_that_a_replica_refuses_fails_alone(collect: Collect, stub: StubReplica) -> None:
    stub.behaviour.refused_field = "task"
    ended = collect("--limit", "3", replicas=[stub])
    assert ended.status == 3
    assert "3 failed with invalid-request" in ended.stderr


def test_another_service_at_the_address_is_bad_usage(collect: Collect, stub: StubReplica) -> None:
    ended = collect("--replica", stub.base_url + "/elsewhere")
    assert ended.status == 2
    assert "replica 0 does not answer like a latentwire service" in ended.stderr


@pytest.mark.parametrize("fault", [0, 503])
def test_a_replica_whose_first_info_fails_is_probed_again(
    collect: Collect, stub: StubReplica, fault: int
) -> None:
    stub.behaviour.info_faults.extend([fault, fault])
    assert collect("--limit", "2", replicas=[stub]).status == 0


@pytest.mark.parametrize("address", ["nonsense", "ftp://host", "http://"])
def test_an_invalid_address_is_refused(collect: Collect, address: str) -> None:
    ended = collect("--replica", address)
    assert ended.status == 2
    assert "--replica: must be like" in ended.stderr


def test_a_name_with_several_addresses_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(_: object, host: str, port: int, **__: object) -> list[object]:
        v4 = {"many": ["10.0.0.2", "10.0.0.1"], "one": ["10.0.0.3"]}[host]
        found: list[object] = [(socket.AF_INET6, 1, 6, "", ("::1", port, 0, 0))]
        return found + [(socket.AF_INET, 1, 6, "", (address, port)) for address in v4]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    addresses = ["http://many:8000", "http://one:8000", "https://many", "http://one:8000"]
    assert asyncio.run(resolve_endpoints(addresses)) == [
        "http://10.0.0.1:8000",
        "http://10.0.0.2:8000",
        "http://one:8000",
        "https://many",
    ]


def test_an_unknown_name_is_kept_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(*_: object, **__: object) -> list[object]:
        raise socket.gaierror

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    assert asyncio.run(resolve_endpoints(["http://later:1"])) == ["http://later:1"]
    with pytest.raises(UsageError):
        asyncio.run(resolve_endpoints(["http://"]))


def test_a_slow_replica_gets_fewer_rows(collect: Collect, stub: StubReplica) -> None:
    gate = threading.Event()
    with StubReplica(Behaviour(gate=gate, max_slots=2)) as slow:

        def open_when_the_other_has_done_the_rest() -> None:
            stub.wait_answered(40 - 2)
            gate.set()

        helper = threading.Thread(target=open_when_the_other_has_done_the_rest)
        helper.start()
        assert collect(replicas=[stub, slow]).status == 0
        helper.join()
    # It got only its window of two rows while it answered nothing.
    assert len(slow.received) == 2


@pytest.mark.parametrize("num_slots", [1, 2, 9, 64])
def test_as_many_rows_as_slots_are_in_flight(num_slots: int) -> None:
    limits = Limits(max_slots=num_slots, max_model_len=1, max_queue=8, max_body_bytes=1)
    info = InfoResponse(
        model="stub",
        revision=None,
        hidden_size=1,
        vocab_size=1,
        dtype="float32",
        device="cpu",
        limits=limits,
        version="0",
        compressors=[],
    )
    assert default_window(info) == num_slots


LOOKS = [["10.0.0.1"], [], ["10.0.0.1", "10.0.0.2"], ["10.0.0.2"], ["10.0.0.1"]]


@pytest.mark.parametrize(
    ("looks", "started", "gained"),
    [
        (LOOKS, ["http://service:1"], ["10.0.0.2"]),
        # Unknown at the start: the first address belongs to the replica known by name.
        (
            [[], ["10.0.0.1", "10.0.0.2", "10.0.0.3"]],
            ["http://service:1"],
            ["10.0.0.2", "10.0.0.3"],
        ),
        # More by the first look than at the start.
        (LOOKS[2:], ["http://10.0.0.2:1", "http://10.0.0.4:1"], ["10.0.0.1"]),
    ],
)
def test_endpoints_that_a_name_gains_are_reported_once(
    looks: list[list[str]], started: list[str], gained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = list(looks)
    is_over = asyncio.Event()

    async def lookup(*_: object, **__: object) -> list[tuple[object, ...]]:
        if not answers:
            is_over.set()
            await asyncio.Event().wait()
        return [(socket.AF_INET, 0, 0, "", (host, 1)) for host in answers.pop(0)]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", lookup)
    added: list[str] = []

    async def run() -> None:
        looking = asyncio.create_task(
            discover(["http://service:1"], started, added.append, interval_s=0)
        )
        await is_over.wait()
        looking.cancel()

    asyncio.run(run())
    assert added == [f"http://{host}:1" for host in gained]


def test_a_replica_that_appears_during_the_run_gets_rows(
    collect: Collect,
    stub: StubReplica,
    other_stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def find(_: object, _started: object, add: Callable[[str], None]) -> None:
        await asyncio.to_thread(stub.stalled.wait, 30)
        add(other_stub.base_url)
        await asyncio.to_thread(other_stub.wait_answered, 3)
        stub.resume()
        await asyncio.Event().wait()

    monkeypatch.setattr("latentwire_batch.replicas.given.discover", find)
    stub.stall_after = 5
    ended = collect("--concurrency", "2", replicas=[stub])
    assert ended.status == 0
    assert "replica 1 is ready" in ended.stderr
    assert_complete(output, tasks_of(tasks))


@pytest.fixture
def stoppable() -> Iterator[subprocess.Popen[str]]:
    """A stub in a process of its own; its first line is its port."""
    command = [sys.executable, "-m", "support.batch.stub_replica", "--delay", "0.02"]
    tests = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tests) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_given_replica_that_hangs_is_set_aside_until_it_is_healthy(
    comes_back: bool,
    stoppable: subprocess.Popen[str],
    collect: Collect,
    stub: StubReplica,
    stderr: WatchedStream,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped process keeps its connections, so that only a probe can notice."""
    monkeypatch.setattr("latentwire_batch.replicas.fleet.HANG_PATIENCE_S", 1.0)
    assert stoppable.stdout is not None
    url = f"http://127.0.0.1:{int(stoppable.stdout.readline())}"
    probe = AsyncClient._unready_reason

    async def short_for_one(client: AsyncClient, call: Any, timeout_s: float) -> Any:
        # On a busy machine, the other one may take longer for an answer.
        return await probe(client, call, 0.5 if client._http.base_url == url else timeout_s)

    monkeypatch.setattr(AsyncClient, "_unready_reason", short_for_one)
    gate = stub.behaviour.gate = threading.Event()

    def stop() -> None:
        stub.wait_received(1)
        stoppable.send_signal(signal.SIGSTOP)
        stderr.wait_for("replica 1 does not answer; its rows are sent again")
        if comes_back:
            stoppable.send_signal(signal.SIGCONT)
            stderr.wait_for("replica 1 is ready")
        gate.set()

    helper = threading.Thread(target=stop)
    helper.start()
    ended = collect("--replica", url, "--timeout", "3600", replicas=[stub])
    helper.join()
    assert ended.status == 0, ended.stderr
    assert_complete(output, tasks_of(tasks))
