"""Rows that cannot be used: refused by default, set aside as failures with `--skip-invalid`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire_batch.tasks.reader import TaskSource
from latentwire_batch.tasks.rows import RowFields, identify
from support.batch.collecting import Collect
from support.batch.dataset_oracle import assert_complete
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica

BROKEN = [
    json.dumps({"id": "empty", "task": ""}),
    json.dumps({"id": "none", "task": None}),
    json.dumps({"id": "number", "task": 3}),
    json.dumps({"id": "absent", "goal": "x"}),
    json.dumps({"id": [1], "task": "an id that is no id"}),
    json.dumps({"id": "half", "task": "\ud800"}),
    json.dumps([1]),
    "{not json",
    '{"task": "cut',
    "[" * 100_000,
]


def write_broken(path: Path) -> int:
    """Write a good row before, between and after all broken ones."""
    good = [json.dumps({"id": f"t{i}", "task": f"Task {i}"}) for i in range(len(BROKEN) + 1)]
    lines = [part for pair in zip(good, BROKEN, strict=False) for part in pair] + good[-1:]
    content = "\n".join(lines).encode() + b'\n{"id": "bytes", "task": "\xff"}\n'
    path.write_bytes(content)
    return len(lines) + 1


def failures_of(output: Path) -> list[dict[str, object]]:
    lines = (output / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("line", BROKEN)
def test_a_refusal_names_the_flag(
    line: str, collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    tasks.write_text(f'{{"task": "fine"}}\n{line}\n')
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "--skip-invalid sets such rows aside" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not output.exists()


def test_rows_that_are_set_aside_are_failures_and_the_others_are_collected(
    collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    num_rows = write_broken(tasks)
    ended = collect("--skip-invalid", replicas=[stub])
    assert ended.status == 3
    assert f"{len(BROKEN) + 1} rows are set aside; the first: row 1: field 'task' is empty" in (
        ended.stderr
    )
    failures = failures_of(output)
    assert [failure["row"] for failure in failures] == [*range(1, num_rows - 1, 2), num_rows - 1]
    assert {failure["code"] for failure in failures} == {"invalid-row"}
    ids = ["empty", "none", "number", "absent", "9", "half", "13", "15", "17", "19", "21"]
    assert [failure["task_id"] for failure in failures] == ids
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    assert (counts["rows"], counts["finished"], counts["failed"]) == (num_rows, 11, 11)
    good = {2 * i: (f"t{i}", f"Task {i}") for i in range(len(BROKEN) + 1)}
    without = tuple(set(range(num_rows)) - set(good))
    assert_complete(output, [good.get(i, ("", "")) for i in range(num_rows)], without=without)
    assert len(stub.received) == 11

    assert "11 failed with invalid-row (see failures.jsonl): correct them in the input" in (
        ended.stderr
    )
    for flags in ((), ("--retry-failed",)):
        # Without --replica it would start replicas of its own.
        for replicas in ([stub], None):
            ended = collect("--skip-invalid", *flags, replicas=replicas)
            assert ended.status == 3
            assert (
                "nothing to do: 11 rows are already collected; 11 cannot be used (see "
                "failures.jsonl), which --retry-failed cannot change"
            ) in ended.stderr
            assert "starting" not in ended.stderr
    assert len(stub.received) == 11
    assert failures_of(output) == failures


def test_failed_rows_are_retried_next_to_rows_that_cannot_be_used(
    collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    write_broken(tasks)
    stub.behaviour.task_faults = {"Task 3": [422]}
    ended = collect("--skip-invalid", replicas=[stub])
    assert ended.status == 3
    assert "12 failed" in ended.stderr
    assert "retry them with --retry-failed" in collect("--skip-invalid", replicas=[stub]).stderr
    stub.received.clear()
    assert collect("--skip-invalid", "--retry-failed", replicas=[stub]).status == 3
    assert stub.received_ids() == ["t3"]
    assert len(failures_of(output)) == 11


def test_an_interrupted_run_resumes_with_rows_set_aside(
    collect: Collect, tasks: Path, output: Path
) -> None:
    write_broken(tasks)
    with StubReplica(Behaviour(die_after=4)) as dying:
        ended = collect("--skip-invalid", "--replica-timeout", "1", replicas=[dying])
        assert ended.status == 1
        # The rows that are set aside are no rows of an earlier run.
        assert "resuming" not in ended.stderr
    with StubReplica() as stub:
        ended = collect("--skip-invalid", replicas=[stub])
        assert ended.status == 3
        assert "resuming: 4 of 22 rows are done, and 11 are set aside" in ended.stderr
        assert len(stub.received) == 7
    assert len(failures_of(output)) == 11


def test_a_retry_counts_no_rows_that_are_set_aside_as_done(
    collect: Collect, stub: StubReplica, tasks: Path
) -> None:
    write_broken(tasks)
    stub.behaviour.task_faults = {"Task 3": [422]}
    # Rows 0, 3, 6 to 21, of which the odd ones cannot be used.
    flags = ("--skip-invalid", "--shard", "0/3")
    assert "resuming" not in collect(*flags, replicas=[stub]).stderr
    ended = collect(*flags, "--retry-failed", replicas=[stub])
    assert "resuming: 3 of 8 rows are done, and 4 are set aside" in ended.stderr


def test_an_input_without_a_usable_row_is_refused(
    collect: Collect, stub: StubReplica, tasks: Path, output: Path
) -> None:
    tasks.write_text("\n".join(BROKEN))
    ended = collect("--skip-invalid", replicas=[stub])
    assert ended.status == 2
    assert "holds no row that can be used: row 0: field 'task' is empty" in ended.stderr
    assert not output.exists()


def test_the_flag_does_not_change_an_input_without_such_rows(
    collect: Collect, stub: StubReplica
) -> None:
    assert collect(replicas=[stub]).status == 0
    assert "nothing to do" in collect("--skip-invalid", replicas=[stub]).stderr


def test_identity_knows_where_rows_are_set_aside(tmp_path: Path) -> None:
    inputs = [["a", "", "b"], ["a", "b", ""], ["a", "b"]]
    identities = []
    for number, texts in enumerate(inputs):
        pq.write_table(pa.table({"task": texts}), tmp_path / str(number))
        source = TaskSource(
            tmp_path / str(number), RowFields("task", None, "id"), skips_invalid=True
        )
        identities.append(identify(source.all_rows()))
        assert [row.task for row in source.rows()] == ["a", "b"]
    assert len({identity.sha256 for identity in identities}) == 3
