"""The date that chat templates write is chosen once, recorded, and sent with every row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.batch.collecting import Collect
from support.batch.dataset_oracle import tasks_of
from support.batch.stub_replica import StubReplica


def recorded(output: Path) -> str | None:
    prompt = json.loads((output / "manifest.json").read_text())["settings"]["prompt"]
    date: str | None = prompt.get("date")
    return date


@pytest.fixture
def set_today(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr("latentwire_batch.collect.today", lambda: "2031-12-09")
    return monkeypatch


def test_the_date_is_todays_for_every_row_and_every_later_run(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    set_today: pytest.MonkeyPatch,
) -> None:
    stub.behaviour.task_faults[tasks_of(tasks)[3][1]] = [422]
    assert collect(replicas=[stub]).status == 3
    set_today.setattr("latentwire_batch.collect.today", lambda: "2031-12-10")
    assert collect("--retry-failed", replicas=[stub]).status == 0
    assert set(stub.dates) == {"2031-12-09"}
    assert recorded(output) == "2031-12-09"
    # A finished output has nothing left to date.
    assert collect(replicas=[stub]).status == 0


def test_an_unfinished_run_keeps_its_date(
    collect: Collect, stub: StubReplica, output: Path, set_today: pytest.MonkeyPatch
) -> None:
    stub.behaviour.die_after = 15
    flags = ("--replica-timeout", "0.2", "--max-retries", "0")
    assert collect(*flags, replicas=[stub]).status not in (0, 2)
    stub.behaviour.is_dead, stub.behaviour.die_after = False, None
    set_today.setattr("latentwire_batch.collect.today", lambda: "2031-12-10")
    refused = collect("--date", "2031-12-11", replicas=[stub])
    assert refused.status == 2
    assert "prompt.date was '2031-12-09', now '2031-12-11'" in refused.stderr
    assert collect(replicas=[stub]).status == 0
    assert set(stub.dates) == {"2031-12-09"}
    assert recorded(output) == "2031-12-09"


def test_a_given_date_is_used(collect: Collect, stub: StubReplica, output: Path) -> None:
    assert collect("--date", "1999-01-31", replicas=[stub]).status == 0
    assert set(stub.dates) == {"1999-01-31"}
    assert recorded(output) == "1999-01-31"
    ended = collect("--overwrite", "--date", "31.1.1999", replicas=[stub])
    assert ended.status == 2
    assert "--date: " in ended.stderr


def test_no_date_enters_where_no_template_can_write_it(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--chat-template", "none", replicas=[stub]).status == 0
    assert set(stub.dates) == {None}
    assert recorded(output) is None
