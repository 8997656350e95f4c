"""Of several machines, one at a time writes to a folder behind a URL."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from latentwire_batch.errors import LocationError, OutputBusyError
from latentwire_batch.locations import Folder
from latentwire_batch.output import owner
from latentwire_batch.output.owner import Owner
from latentwire_batch.output.remote import RemoteDestination
from support.batch.collecting import Collect, Ended
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.s3_server import BUCKET, running_s3
from support.batch.stub_replica import StubReplica

Make = Callable[[str], Owner]
NEVER_S = 1000.0
# Of a process that stops itself before it sends its second file.
STOPPING = """
import os, signal, sys
from latentwire_batch.output import owner, upload
from latentwire_batch.output.owner import Owner
upload._FILES_AT_A_TIME, owner._TRUST_S = 1, 0
real, calls = Owner.check_lately, []
def check(self):
    calls.append(0)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    real(self)
Owner.check_lately = check
from latentwire_batch.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """Stand for a store: each request is done at once, though memory is not made for threads."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    lock = threading.RLock()

    def at_once(request: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with lock:
                return request(*args)

        return call

    for name in ("sizes", "read", "write", "create", "put", "remove"):
        monkeypatch.setattr(Folder, name, at_once(getattr(Folder, name)))
    yield Folder("memory://bucket/out")
    store.store.clear()


@pytest.fixture
def machine(folder: Folder, tmp_path: Path) -> Make:
    return lambda name: Owner(folder, tmp_path / name, lambda _line: None)


def set_times(monkeypatch: pytest.MonkeyPatch, beat_s: float, stale_s: float) -> None:
    monkeypatch.setattr(owner, "_BEAT_S", beat_s)
    monkeypatch.setattr(owner, "_STALE_S", stale_s)
    monkeypatch.setattr(owner, "_POLL_S", 0.01)


def test_a_second_machine_is_refused_as_long_as_the_first_one_works(
    machine: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, 0.02, NEVER_S)
    with machine("first").held():
        busy = pytest.raises(OutputBusyError, match="--output-dir: another run is writing to it")
        with busy, machine("second").held():
            pass
        folder.write(".partial/settings.json", b"{}")
    with machine("second").held():
        pass
    assert list(folder.sizes()) == [".partial/settings.json"]


def test_a_machine_that_is_gone_is_replaced_and_learns_it_when_it_comes_back(
    machine: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, NEVER_S, 0.05)
    first, second = machine("first"), machine("second")
    with first.held():
        first.check()
        with second.held():
            second.check()
            with pytest.raises(OutputBusyError, match="another run has taken it over"):
                first.check()
    assert folder.sizes() == {}


@pytest.mark.parametrize("is_late", [False, True])
def test_an_owner_that_is_replaced_while_it_gives_a_sign_leaves_no_record(
    machine: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    set_times(monkeypatch, NEVER_S, 0.05)
    first, second = machine("first"), machine("second").held()
    look, write, started = Owner._is_own, Owner._write, threading.Event()

    def replace(one: Owner) -> None:
        if one is first and not started.is_set():
            started.set()
            second.__enter__()

    def look_slowly(one: Owner) -> bool:
        """Pause after the record was read in time."""
        is_own = look(one)
        if is_late and is_own:
            replace(one)
            one._confirmed_s -= owner._TRUST_S + 1
        return is_own

    def write_slowly(one: Owner, name: str) -> None:
        replace(one)
        write(one, name)

    with first.held():
        monkeypatch.setattr(Owner, "_is_own", look_slowly)
        monkeypatch.setattr(Owner, "_write", write_slowly)
        # Late, nothing is written, and the next beat finds the new owner.
        assert first._renew() == is_late
        assert list(folder.sizes()) == [".partial/owner/000002.json"]
        assert not first._renew()
    second.__exit__(None, None, None)
    assert folder.sizes() == {}


def test_a_killed_run_takes_its_folder_back_without_waiting(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, NEVER_S, NEVER_S)
    killed = machine("first").held()
    killed.__enter__()
    with machine("first").held():
        pass


def test_a_machine_whose_rival_creates_the_record_first_is_refused(
    folder: Folder, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, beat_s=0.02, stale_s=NEVER_S)
    monkeypatch.setattr(owner, "_POLL_S", 0.02)
    rival, real = machine("rival").held(), Folder.create

    def create(self: Folder, name: str, data: bytes) -> bool:
        monkeypatch.setattr(Folder, "create", real)
        rival.__enter__()
        return real(self, name, data)

    monkeypatch.setattr(Folder, "create", create)
    with pytest.raises(OutputBusyError), machine("late").held():
        pass
    rival.__exit__(None, None, None)
    assert folder.sizes() == {}


def test_of_many_machines_that_start_together_one_owns_the_folder(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_times(monkeypatch, 0.01, NEVER_S)
    num_owners: list[int] = []
    inside: set[int] = set()

    def run(number: int) -> None:
        try:
            with machine(f"machine {number}").held():
                inside.add(number)
                num_owners.append(len(inside))
                time.sleep(0.1)
                inside.discard(number)
        except OutputBusyError:
            pass

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(num_owners) == {1}


@pytest.mark.parametrize("work", ["elsewhere", "lost"])
def test_what_a_lost_machine_left_next_to_its_dataset_is_removed_unless_another_one_works_there(
    collect: Collect,
    stub: StubReplica,
    folder: Folder,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
) -> None:
    def run(work: str) -> Ended:
        places = ("--output-dir", folder.url, "--work-dir", str(tmp_path / work))
        return collect(*places, replicas=[stub])

    def lose_machine(*_: object) -> None:
        raise LocationError("the machine is lost")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RemoteDestination, "_remove_claim", lose_machine)
        assert run("lost").status == 1
    # A work directory that knows of no run, as after a crash of another one.
    (partial,) = (tmp_path / "lost").glob("*/.partial")
    for name in ("settings.json", "install.json"):
        (partial / name).unlink()
    for name in ("parts/first/1-a.rows", "parts/first/elapsed-1.json", "parts/after-0123/1-a.rows"):
        folder.write(f".partial/{name}", b"1")
    set_times(monkeypatch, 0.01, NEVER_S)
    with Owner(folder, tmp_path / "token", lambda _line: None).held():
        before = folder.sizes().keys()
        busy = run("elsewhere")
        assert (busy.status, folder.sizes().keys()) == (0, before), busy.stderr
    folder.write(".partial/owner/000001.json", b'{"run": "lost"}')
    set_times(monkeypatch, NEVER_S, 0.05)
    ended = run(work)
    assert ended.status == 0, ended.stderr
    assert "nothing to do: all 40 rows are already collected" in ended.stderr
    assert list((tmp_path / work).iterdir()) == []
    for name in folder.sizes():
        assert not name.startswith(".partial")
        folder.fetch(name, tmp_path / "copy" / name)
    assert_complete(tmp_path / "copy", tasks_of(tasks))


@pytest.mark.slow
def test_a_machine_that_stood_still_leaves_the_dataset_of_another_one_alone(
    collect: Collect,
    stub: StubReplica,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ("--max-new-tokens", "12", "--output-dir")
    with running_s3(monkeypatch):
        out = Folder(f"s3://{BUCKET}/out")
        given = ("--dataset", str(tasks), "--seed", "7", "--replica", stub.base_url)
        work = ("--work-dir", str(tmp_path / "first"))
        command = [sys.executable, "-c", STOPPING, *given, *flags, out.url, *work]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
            state = Path(f"/proc/{first.pid}/stat")
            while state.read_text().rpartition(")")[2].split()[0] != "T":
                assert first.poll() is None
                time.sleep(0.02)
            before = set(out.sizes())
            set_times(monkeypatch, 10.0, 0.05)
            other = (out.url, "--work-dir", str(tmp_path / "second"), "--seed", "8", "--overwrite")
            ended = collect(*flags, *other, replicas=[stub])
            assert ended.status == 0, ended.stderr
            finished = out.sizes()
            first.send_signal(signal.SIGCONT)
            _, stderr = first.communicate(timeout=180)
        assert first.returncode == 2
        assert "--output-dir: another run has taken it over" in stderr
        assert ".partial/owner/000001.json" in before
        assert out.sizes() == finished
        for name in finished:
            out.fetch(name, tmp_path / "copy" / name)
    assert b'"seed": 8' in (tmp_path / "copy" / "manifest.json").read_bytes()
    assert_complete(tmp_path / "copy", tasks_of(tasks), seed=8)
