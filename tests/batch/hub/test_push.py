"""`--push-to-hub`, with the real library and a stand-in of the hub."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from support.batch.collecting import Collect
from support.batch.hub_server import TOKEN, HubServer, Repository, running_hub
from support.batch.stub_replica import StubReplica

# The library's own way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPOSITORY = "lab/latents"
PUSH = ("--layout", "hub", "--max-shard-size", "2000", "--push-to-hub", REPOSITORY)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(monkeypatch) as server:
        yield server


def files_of(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and ".partial" not in path.parts
    }


def pushed(hub: HubServer) -> dict[str, bytes]:
    return {
        name: data
        for name, data in hub.repositories[REPOSITORY].files.items()
        if name != ".gitattributes"
    }


FAILING = "Clean window 0 — ☀"


def test_the_dataset_arrives_byte_for_byte_in_one_commit(
    hub: HubServer, collect: Collect, stub: StubReplica, output: Path
) -> None:
    stub.behaviour.task_faults[FAILING] = [422]
    ended = collect(*PUSH, "--private", replicas=[stub])
    assert ended.status == 3
    assert pushed(hub) == files_of(output)
    names = set(pushed(hub))
    assert {"README.md", "manifest.json", "failures.jsonl"} < names
    assert len(names) > 5
    repository = hub.repositories[REPOSITORY]
    assert repository.is_private
    assert len(repository.commits) == 2
    assert ended.stderr.splitlines()[-1].endswith(f"the dataset is on the hub: {REPOSITORY}")
    # Pushing the same files again makes no commit and sends no large file.
    num_uploads, stub.received = len(hub.uploads), []
    assert collect(*PUSH, replicas=[stub]).status == 3
    assert (len(repository.commits), len(hub.uploads)) == (2, num_uploads)
    # Fewer files, and no failures: those of the earlier push are removed.
    flags = ("--layout", "hub", "--push-to-hub", REPOSITORY, "--retry-failed")
    assert collect(*flags, replicas=[stub]).status == 0
    assert pushed(hub) == files_of(output)
    assert "failures.jsonl" not in pushed(hub)
    assert len(pushed(hub)) == 3


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("create", 401, "it does not accept the token"),
        ("create", 403, "the token may not write there"),
        ("preupload", 403, "the token may not write there"),
        ("batch", 400, "it answered with status 400"),
        ("upload", 400, "it answered with status 400"),
        ("commit", 403, "the token may not write there"),
    ],
)
def test_a_push_that_failed_is_repeated_without_collecting(
    kind: str,
    status: int,
    reason: str,
    hub: HubServer,
    collect: Collect,
    stub: StubReplica,
    output: Path,
) -> None:
    hub.faults[kind] = deque([status] * 20)
    ended = collect(*PUSH, "--limit", "6", replicas=[stub])
    last = ended.stderr.splitlines()[-1]
    assert ended.status == 1
    assert last.startswith("latentwire collect: --push-to-hub: the hub refused the dataset: ")
    assert reason in last
    assert last.endswith("the dataset is complete here; rerun the same command to push it")
    assert TOKEN not in ended.stderr
    assert hub.url not in ended.stderr
    assert "Traceback" not in ended.stderr
    # Nobody sees a part of it.
    assert all(not pushed(hub) for _ in hub.repositories)
    hub.faults.clear()
    num_arrived = len(hub.uploads)
    stub.received.clear()
    assert collect(*PUSH, "--limit", "6").status == 0
    assert stub.received == []
    assert pushed(hub) == files_of(output)
    # What had arrived was not sent again.
    assert len(hub.uploads) == len(set(hub.uploads)) >= num_arrived


# It starts a process of its own.
@pytest.mark.slow
def test_a_push_that_was_killed_is_completed_by_the_same_command(
    hub: HubServer, collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    own_file = {".gitattributes": b"lfs", "notes.txt": b"mine"}
    hub.repositories[REPOSITORY] = Repository(is_private=True, commits=[own_file])
    command = [sys.executable, "-m", "latentwire_batch", "--dataset", str(tasks), "--seed", "7"]
    command += ["--output-dir", str(output), "--replica", stub.base_url, "--max-new-tokens", "12"]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    hub.gate = threading.Event()
    with subprocess.Popen([*command, *PUSH], env=environment, stderr=subprocess.DEVNULL) as killed:
        try:
            assert hub.arrived.wait(180)
        finally:
            killed.kill()
    hub.gate.set()
    # What the killed process has sent may still be on its way.
    hub.wait_idle()
    num_arrived = len(hub.uploads)
    assert hub.repositories[REPOSITORY].commits == [own_file]
    stub.received.clear()
    assert collect(*PUSH, replicas=[stub]).status == 0
    assert stub.received == []
    assert pushed(hub) == {**files_of(output), "notes.txt": b"mine"}
    assert hub.repositories[REPOSITORY].is_private
    assert len(hub.uploads) == len(set(hub.uploads)) >= num_arrived


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_is_one_line(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = collect(*PUSH, "--limit", "2", replicas=[stub])
    assert ended.status == 1
    last = ended.stderr.splitlines()[-1]
    assert "--push-to-hub: the hub cannot be reached, or the connection broke; the d" in last
    assert "127.0.0.1:9" not in ended.stderr


def test_another_dataset_under_the_name_stays(
    hub: HubServer, collect: Collect, stub: StubReplica
) -> None:
    foreign = {"data/train-00000-of-00001.parquet": b"theirs"}
    hub.repositories[REPOSITORY] = Repository(is_private=False, commits=[foreign])
    ended = collect(*PUSH, "--limit", "2", replicas=[stub])
    assert ended.status == 2
    assert "--push-to-hub: holds a dataset that was not made by latentwire" in ended.stderr
    assert hub.repositories[REPOSITORY].commits == [foreign]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--push-to-hub", REPOSITORY), "--push-to-hub: needs --layout hub"),
        (("--private",), "--private: is for --push-to-hub"),
        (("--layout", "hub", "--push-to-hub", "a/b/c"), "--push-to-hub: must be the name of a"),
        ((*PUSH, "--shard", "0/2"), "--push-to-hub: is for a whole dataset, not for a shard"),
        ((*PUSH, "--output-dir", "memory://x"), "--push-to-hub: needs an --output-dir on this"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    flags: tuple[str, ...], message: str, collect: Collect, stub: StubReplica
) -> None:
    ended = collect(*flags, replicas=[stub])
    assert (ended.status, stub.received) == (2, [])
    assert message in ended.stderr


@pytest.mark.usefixtures("hub")
def test_without_a_token_nothing_is_sent(
    collect: Collect, stub: StubReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = collect(*PUSH, replicas=[stub])
    assert (ended.status, stub.received) == (2, [])
    assert "--push-to-hub: there is no token; set HF_TOKEN or run `hf auth login`" in ended.stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE switches the hub off" in collect(*PUSH, replicas=[stub]).stderr
