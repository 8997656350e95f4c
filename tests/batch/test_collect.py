from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from latentwire_batch.output.layout import OutputLayout
from latentwire_batch.output.ownership import locked_output
from latentwire_batch.replicas import probe
from support.batch.collecting import Collect, WatchedStream
from support.batch.dataset_oracle import assert_complete, tasks_of
from support.batch.stub_replica import StubReplica


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_all_rows_in_input_order(
    collect: Collect, stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path
) -> None:
    assert collect(replicas=[stub, other_stub]).status == 0
    assert_complete(output, tasks_of(tasks))
    assert len(stub.received) + len(other_stub.received) == 40
    assert min(len(stub.received), len(other_stub.received)) > 0


def test_a_replica_that_speaks_json_only_gives_the_same_rows(
    collect: Collect, stub: StubReplica, other_stub: StubReplica, output: Path, tasks: Path
) -> None:
    other_stub.behaviour.speaks_json_only = True
    assert collect(replicas=[stub, other_stub]).status == 0
    assert_complete(output, tasks_of(tasks))
    assert min(len(stub.received), len(other_stub.received)) > 0
    assert stub.sent_media_types == {"application/x-safetensors"}
    assert other_stub.sent_media_types == {"application/json"}


@pytest.mark.parametrize("k", [0, 3, 100])
def test_k_keeps_that_many_steps(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, k: int
) -> None:
    assert collect("--k", str(k), replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks), k=k)


def test_limit_takes_the_first_rows(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    assert collect("--limit", "5", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks)[:5])


def test_the_manifest_describes_the_output(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect("--temperature", "0.5", replicas=[stub])
    manifest = json.loads((output / "manifest.json").read_text())
    steps = sum(map(len, pq.read_table(output / "data.parquet")["hidden_state"]))
    assert manifest["model"] == {
        "model": "stub",
        "revision": None,
        "hidden_size": 8,
        "dtype": "float32",
        "engine": "latentwire",
        "generation_defaults": {},
    }
    assert manifest["settings"]["seed"] == 7
    assert manifest["settings"]["sampling"]["temperature"] == 0.5
    assert manifest["counts"] == {
        "rows": 40,
        "finished": 40,
        "failed": 0,
        "prompt_tokens": 200,
        "completion_tokens": steps,
        "latent_steps": steps,
        "finish_reasons": {"stop": 40},
        "cut_plans": 0,
    }
    assert manifest["elapsed_s"] > 0


def test_shards_are_bounded_and_both_files_agree(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    assert collect("--max-shard-size", "2KB", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))
    shards = sorted((output / "hf_dataset").glob("*.arrow"))
    assert len(shards) > 3
    assert shards[-1].name == f"data-{len(shards) - 1:05d}-of-{len(shards):05d}.arrow"
    assert pq.ParquetFile(output / "data.parquet").num_row_groups > 3


def test_the_float_column_is_byte_stream_split(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect(replicas=[stub])
    column = pq.ParquetFile(output / "data.parquet").metadata.row_group(0).column(3)
    assert column.path_in_schema.startswith("hidden_state.")
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings


def test_an_invalid_row_is_not_retried(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    task_id, task = tasks_of(tasks)[3]
    stub.behaviour.task_faults = {task: [422]}
    ended = collect(replicas=[stub])
    assert ended.status == 3
    assert "row 3 failed: prompt-too-long" in ended.stderr
    assert stub.received_ids().count(task_id) == 1
    assert_complete(output, tasks_of(tasks), without=(3,))
    lines = (output / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "row": 3,
            "task_id": "t3",
            "code": "prompt-too-long",
            "message": "scripted prompt-too-long",
        }
    ]


def test_a_dataset_without_any_finished_row_can_be_opened(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    stub.behaviour.faults.extend([422] * 2)
    assert collect("--limit", "2", replicas=[stub]).status == 3
    assert pq.read_table(output / "data.parquet").num_rows == 0
    assert len(datasets.load_from_disk(str(output / "hf_dataset"))) == 0


def test_retry_failed_sends_only_failed_rows_and_merges_them(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    rows = tasks_of(tasks)
    stub.behaviour.task_faults = {rows[i][1]: [422] for i in (0, 17, 39)}
    assert collect(replicas=[stub]).status == 3
    stub.received.clear()
    stub.behaviour.task_faults = {rows[17][1]: [422]}
    assert collect("--retry-failed", replicas=[stub]).status == 3
    assert sorted(map(str, stub.received_ids())) == ["t0", "t17", "t39"]
    assert_complete(output, rows, without=(17,))
    assert collect("--retry-failed", replicas=[stub]).status == 0
    assert_complete(output, rows)
    assert not (output / "failures.jsonl").exists()
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    assert (counts["finished"], counts["failed"], counts["prompt_tokens"]) == (40, 0, 200)


def test_a_finished_output_is_left_alone(collect: Collect, stub: StubReplica, output: Path) -> None:
    collect(replicas=[stub])
    before, num_received = snapshot(output), len(stub.received)
    ended = collect(replicas=[stub])
    assert ended.status == 0
    assert "nothing to do: all 40 rows are already collected" in ended.stderr
    assert snapshot(output) == before
    assert len(stub.received) == num_received


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--engine", "vllm"], None),
        (["--engine", "latentwire"], "model.engine was 'vllm', now 'latentwire'"),
        ([], "model.engine was 'vllm', now 'latentwire'"),
    ],
)
def test_a_finished_output_of_another_engine_is_refused(
    flags: list[str], complaint: str | None, collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect(replicas=[stub])
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    manifest["model"]["engine"] = "vllm"
    (output / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    ended = collect("--model", "demo", *flags)
    assert ended.status == (0 if complaint is None else 2)
    assert (complaint or "nothing to do") in ended.stderr


def test_a_finished_output_with_failures_is_reported_with_them(
    collect: Collect, stub: StubReplica
) -> None:
    stub.behaviour.faults.append(422)
    assert collect(replicas=[stub]).status == 3
    ended = collect(replicas=[stub])
    assert ended.status == 3
    assert "--retry-failed" in ended.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--k", "2"], "k was None, now 2"),
        (["--temperature", "0.3"], "sampling.temperature was 1.0, now 0.3"),
        (["--seed", "8"], "seed was 7, now 8"),
        (["--prompt-template", "{task}"], "prompt.prompt_template was"),
        (["--limit", "39"], "data.num_rows was 40, now 39"),
    ],
)
def test_other_settings_are_refused_and_named(
    collect: Collect, stub: StubReplica, output: Path, flags: list[str], named: str
) -> None:
    collect(replicas=[stub])
    before = snapshot(output)
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 2
    assert named in ended.stderr
    assert snapshot(output) == before


def test_another_model_is_refused_for_a_finished_output(
    collect: Collect,
    stub: StubReplica,
    other_stub: StubReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collect(replicas=[stub])
    # A busy machine may answer later than a look at what is served waits.
    monkeypatch.setattr(probe, "_PATIENCE_S", 60.0)
    other_stub.behaviour.model = "another"
    ended = collect(replicas=[other_stub])
    assert ended.status == 2
    assert "model.model was 'stub', now 'another'" in ended.stderr


def test_the_seed_flag_decides_every_row(
    tasks: Path, output: Path, collect: Collect, stub: StubReplica
) -> None:
    assert collect("--seed", "123", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks), seed=123)


def test_overwrite_starts_from_scratch_and_spares_other_files(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    collect(replicas=[stub])
    (output / "notes.txt").write_text("mine")
    assert collect("--overwrite", "--k", "2", replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks), k=2)
    assert (output / "notes.txt").read_text() == "mine"


def test_a_foreign_dataset_is_not_overwritten(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    output.mkdir()
    (output / "data.parquet").write_text("precious")
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "holds a dataset without a manifest" in ended.stderr
    assert (output / "data.parquet").read_text() == "precious"
    assert sorted(os.listdir(output)) == ["data.parquet"]


def test_a_second_run_on_the_same_output_is_refused(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    with locked_output(OutputLayout(output)):
        ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "another collection is writing to it" in ended.stderr
    assert not stub.received
    assert not output.exists()


@pytest.mark.parametrize("text", ['{"id": 1}', "not json", ""])
def test_bad_input_writes_nothing(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, text: str
) -> None:
    tasks.write_text(text)
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert ended.stderr.startswith("latentwire collect: --dataset: ")
    assert not output.exists()


def test_an_output_that_is_a_file_is_refused(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    output.write_text("")
    ended = collect(replicas=[stub])
    assert ended.status == 2
    assert "--output-dir: is not a directory" in ended.stderr


def test_a_write_that_fails_ends_the_run_and_a_rerun_completes(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = os.pwritev, []

    def fill_up(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) > 10:
            raise OSError(28, "No space left on device")
        return real(fd, buffers, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fill_up)
        ended = collect(replicas=[stub])
    assert ended.status == 1
    assert "No space left on device" in ended.stderr
    assert not (output / "data.parquet").exists()
    assert collect(replicas=[stub]).status == 0
    assert_complete(output, tasks_of(tasks))


def test_no_file_and_no_message_shows_where_the_dataset_was_made(
    collect: Collect, stub: StubReplica, output: Path, stderr: WatchedStream
) -> None:
    stub.behaviour.faults.extend([422, 500, 503])
    assert collect("--model", str(Path.home() / "m"), replicas=[stub]).status == 3
    messages = stderr.getvalue().encode()
    kept = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    for secret in (socket.gethostname(), str(output), str(Path.home()), stub.base_url, "127.0.0.1"):
        assert secret.encode() not in messages + kept
    for secret in ("Clean window", "Plan "):
        assert secret.encode() not in messages


def test_conversations_are_read_by_index(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path
) -> None:
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "tidy up"}]
    tasks.write_text(json.dumps([{"conversations": turns}] * 2))
    assert collect("--conversations-index", "1", replicas=[stub]).status == 0
    assert_complete(output, [("0", "tidy up"), ("1", "tidy up")])


def test_a_run_without_a_seed_records_one(
    stub: StubReplica, output: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentwire_batch.__main__ import main

    monkeypatch.setattr("latentwire_batch.dispatch.seeds.secrets.randbelow", lambda _: 99)
    args = ["--dataset", str(tasks), "--output-dir", str(output), "--replica", stub.base_url]
    assert main([*args, "--max-new-tokens", "12"]) == 0
    assert_complete(output, tasks_of(tasks), seed=99)
    assert main([*args, "--max-new-tokens", "12"]) == 0


def test_output_files_follow_the_umask(collect: Collect, stub: StubReplica, output: Path) -> None:
    collect(replicas=[stub])
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in output.rglob("*")}
    assert modes == {0o444 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_concurrency_is_used_and_not_exceeded(collect: Collect, stub: StubReplica) -> None:
    gate = stub.behaviour.gate = threading.Event()

    def open_when_full() -> None:
        stub.wait_received(3)
        gate.set()

    helper = threading.Thread(target=open_when_full)
    helper.start()
    assert collect("--concurrency", "3", replicas=[stub]).status == 0
    helper.join()
    assert stub.most_in_flight == 3
