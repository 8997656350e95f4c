"""Shards, merged, are the dataset that one run makes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latentwire_batch.output.layout import OutputLayout
from support.batch.collecting import Collect, write_tasks
from support.batch.dataset_oracle import (
    assert_complete,
    assert_equal_datasets,
    collect_shards,
    said,
    tasks_of,
)
from support.batch.stub_replica import StubReplica

Merge = Any
FORMS = {
    "plain": (),
    "columns": ("--columns", "token_ids,seed,finish_reason", "--k", "3"),
    "int8": ("--storage-dtype", "int8", "--compressor", "novel:2", "--compressor", "mean-pool:2"),
    "bfloat16 instead": ("--storage-dtype", "bfloat16", "--compressor", "svd:2", "--replace"),
    "int4": ("--storage-dtype", "int4"),
}


@pytest.mark.parametrize("form", FORMS)
def test_merged_shards_are_the_dataset_of_one_run(
    form: str,
    collect: Collect,
    merge: Merge,
    stub: StubReplica,
    tasks: Path,
    merged: Path,
    tmp_path: Path,
) -> None:
    broken = [5, 6, 17]
    lines = tasks.read_text("utf-8").splitlines()
    lines[9] = "broken"
    texts = [json.loads(lines[index])["task"] for index in broken]
    tasks.write_text("\n".join(lines) + "\n", "utf-8")
    flags = ("--skip-invalid", "--limit", "23", *FORMS[form])
    whole = tmp_path / "whole"
    stub.behaviour.task_faults = {text: [422] for text in texts}
    assert collect(*flags, "--output-dir", str(whole), replicas=[stub]).status == 3
    stub.behaviour.task_faults = {text: [422] for text in texts}
    statuses = [ended.status for ended in collect_shards(collect, stub, 4, *flags)]
    assert statuses == [0, 3, 3, 0]
    ended = merge()
    assert ended.status == 3, ended.stderr
    assert "19 rows are written; 4 failed" in ended.stderr
    assert_equal_datasets(merged, whole)
    assert said(merged)["merged"]["shards"] == 4
    again = merge()
    assert again.status == 3
    # Neither these rows nor those of another merge can be retried here.
    assert again.stderr.endswith(
        "nothing to do: 19 rows are already merged; 4 failed (see failures.jsonl)\n"
    )


def test_shards_without_rows_and_a_single_shard(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    assert {e.status for e in collect_shards(collect, stub, 5, "--limit", "3")} == {0}
    # The shards' own folder may take the merged dataset, and shards may be named one by one.
    sources = tuple(sorted(output.glob("shard-*")))
    assert merge(sources=sources, target=output).status == 0
    assert pq.read_table(output / "data.parquet")["task_id"].to_pylist() == ["t0", "t1", "t2"]
    assert collect("--shard", "0/5", "--limit", "3", replicas=[stub]).status == 0
    # The shards could not be collected next to a collection of all rows.
    for flag in ("--overwrite", "--retry-failed"):
        ended = collect("--limit", "3", flag, replicas=[stub])
        assert (ended.status, "holds shards, which latentwire merge" in ended.stderr) == (2, True)
    assert (
        "the only row is already collected"
        in collect("--shard", "1/5", "--limit", "3", replicas=[stub]).stderr
    )
    one = tmp_path / "one"
    assert collect("--shard", "0/1", "--output-dir", str(one), replicas=[stub]).status == 0
    assert merge(sources=(one,), target=tmp_path / "all").status == 0
    assert_complete(tmp_path / "all", tasks_of(tmp_path / "tasks.jsonl"))


def test_what_is_missing_is_named(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path
) -> None:
    ended = merge(sources=(output,))
    assert (ended.status, ": no such directory" in ended.stderr) == (2, True)
    for index in (0, 2):
        assert collect("--shard", f"{index}/5", replicas=[stub]).status == 0
    stub.behaviour.die_after = len(stub.answered) + 3
    assert collect("--shard", "4/5", "--replica-timeout", "0.2", replicas=[stub]).status == 1
    ended = merge()
    assert ended.status == 2
    assert "shards 1/5 and 3/5 are missing: collect them with --shard" in ended.stderr
    assert "; shard 4/5 is unfinished: rerun its collection" in ended.stderr
    with (output / "shard-00004-of-00005" / ".partial" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "shard 4/5 is still being collected" in merge().stderr
    assert not merged.exists()


DIFFERENCES = {
    ("--seed", "8"): "seed is 7 and 8; give all shards the same --seed",
    ("--date", "2031-01-01"): "and '2031-01-01'; give all shards the same --date",
    ("--top-k", "5"): "sampling.top_k is 0 and 5; use the same for all",
    ("--limit", "39"): "data.num_rows is 40 and 39; .* let all shards read the same tasks",
    ("--columns", "seed"): r"columns is \[\] and \['seed'\]",
    ("--storage-dtype", "float16"): "storage_dtype is None and 'float16'",
    ("--compressor", "novel:2"): "compressors.hidden_state_comp.name is None and 'novel'",
    (): "model.model is 'stub' and 'another'; let all shards use the same model",
}


def test_shards_of_different_collections_are_refused(
    collect: Collect, merge: Merge, stub: StubReplica, merged: Path
) -> None:
    for index in (0, 2):
        assert collect("--shard", f"{index}/3", replicas=[stub]).status == 0
    for flags, words in DIFFERENCES.items():
        stub.behaviour.model = "stub" if flags else "another"
        assert collect("--shard", "1/3", "--overwrite", *flags, replicas=[stub]).status == 0
        ended = merge()
        assert ended.status == 2
        assert "shards 0/3 and 1/3 were collected with different settings: " in ended.stderr
        assert re.search(words, ended.stderr), ended.stderr
        assert "collect shard 1/3 again with --overwrite" in ended.stderr
        assert not merged.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "SHARDS: required"),
        ([""], "SHARDS: must not be empty"),
        (["nowhere://bucket/out"], "nowhere://bucket/out: cannot be read: no package for URLs"),
        (["s3://key@bucket/out"], "s3://bucket/out: cannot be read: must not hold a user"),
        (["x", "--output-dir", ""], "--output-dir: must not be empty"),
    ],
)
def test_what_is_no_place_is_refused(args: list[str], words: str, merge: Merge) -> None:
    ended = merge(*args, sources=())
    assert (ended.status, f"latentwire merge: {words}" in ended.stderr) == (2, True), ended.stderr


def test_damaged_shards_are_refused(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path, tasks: Path
) -> None:
    stub.behaviour.task_faults = {tasks_of(tasks)[4][1]: [422]}
    collect_shards(collect, stub, 2)
    shard, other = (output / f"shard-0000{index}-of-00002" for index in range(2))
    saved, failures = shard / "hf_dataset", shard / "failures.jsonl"
    manifest, lines = shard / "manifest.json", failures.read_text("utf-8")
    (arrow,) = saved.glob("*.arrow")
    content, stated = arrow.read_bytes(), said(shard)
    # Earlier versions stated no digests.
    earlier = {name: value for name, value in stated.items() if name != "files"}
    fewer = {**earlier, "counts": {**earlier["counts"], "finished": 18}}
    foreign = next(other.glob("hf_dataset/*.arrow")).read_bytes()
    cases: dict[str, tuple[dict[str, Any], Callable[[], object]]] = {
        "lists 0 rows": (earlier, lambda: failures.write_text("", "utf-8")),
        "another shard": (
            earlier,
            lambda: failures.write_text(lines.replace(": 4,", ": 5,"), "utf-8"),
        ),
        "does not hold its 20 rows": (fewer, lambda: None),
        "more rows": (earlier, lambda: arrow.write_bytes(foreign)),
        "failures.jsonl has changed since it was written: its checksum differs": (
            stated,
            lambda: failures.write_text(lines.replace(": 4,", ": 6,"), "utf-8"),
        ),
        f"{arrow.name} has changed since it was written: its checksum differs": (
            stated,
            lambda: arrow.write_bytes(content[:-20] + b"\1" + content[-19:]),
        ),
        f"{arrow.name} has {len(foreign)} bytes, but its manifest.json says {len(content)}": (
            stated,
            lambda: arrow.write_bytes(foreign),
        ),
        "data.parquet has 1 bytes, but": (
            stated,
            lambda: (shard / "data.parquet").write_bytes(b"0"),
        ),
        f"{arrow.name} is missing": (stated, lambda: arrow.unlink()),
    }
    kept = {path: path.read_bytes() for path in (shard / "data.parquet", arrow, failures)}
    for words, (value, damage) in cases.items():
        manifest.write_text(json.dumps(value), "utf-8")
        damage()
        ended = merge()
        assert ended.status in (1, 2), words
        assert "shard 0/2" in ended.stderr, (words, ended.stderr)
        assert words in ended.stderr, (words, ended.stderr)
        assert not merged.exists(), words
        for path, before in kept.items():
            path.write_bytes(before)
    # The form of the rows that is not read may be removed.
    for number, value in enumerate((earlier, stated)):
        manifest.write_text(json.dumps(value), "utf-8")
        assert merge(target=merged / str(number)).status == 3
        (shard / "data.parquet").unlink(missing_ok=True)


def test_damaged_manifests_are_refused(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path
) -> None:
    collect_shards(collect, stub, 2, "--storage-dtype", "bfloat16", "--limit", "4")
    files = sorted(output.glob("*/manifest.json"))
    whole = said(files[0].parent)
    counts, shard = whole["counts"], {"index": False, "count": 2}
    damages: list[Any] = [
        [whole],
        "text",
        {**whole, "counts": {**counts, "finished": "2"}},
        {**whole, "counts": {**counts, "latent_steps": -1}},
        {**whole, "counts": {**counts, "finish_reasons": ["stop"]}},
        {**whole, "replicas": [1]},
        {**whole, "storage": 5},
        {**whole, "storage": {"hidden_state": 5}},
        {**whole, "compressors": {"a": {}}},
        {**whole, "settings": {**whole["settings"], "shard": shard}},
    ]
    for value in damages:
        files[0].write_text(json.dumps(value), "utf-8")
        ended = merge()
        assert ended.status in (1, 2), value
        assert re.search("shard-00000-of-00002|shard 0/2", ended.stderr), (value, ended.stderr)
        assert not merged.exists(), value
    files[0].write_text(json.dumps(whole), "utf-8")
    assert merge().status == 0


def test_the_output_is_no_shard_and_keeps_other_datasets(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path, tasks: Path
) -> None:
    stub.behaviour.task_faults = {tasks_of(tasks)[4][1]: [422]}
    collect_shards(collect, stub, 2)
    inner = output / "shard-00000-of-00002"
    for target in (inner, inner / "deeper"):
        ended = merge(target=target)
        assert ended.status == 2
        assert "--output-dir: is the folder of shard 0/2, or inside of it" in ended.stderr
    assert merge().status == 3
    # A shard that was collected again is merged again, by choice.
    assert collect("--shard", "0/2", "--retry-failed", replicas=[stub]).status == 0
    ended = merge()
    assert (ended.status, "--overwrite replaces it" in ended.stderr) == (2, True)
    assert merge("--overwrite").status == 0
    assert_complete(merged, tasks_of(tasks))
    assert merge().status == 0
    (merged / "manifest.json").unlink()
    ended = merge()
    assert (ended.status, "holds a dataset without a manifest" in ended.stderr) == (2, True)


def test_an_unfinished_collection_is_not_replaced_by_a_merge(
    collect: Collect, merge: Merge, stub: StubReplica, merged: Path
) -> None:
    collect_shards(collect, stub, 2)
    stub.behaviour.die_after = len(stub.answered) + 3
    flags = ("--output-dir", str(merged), "--replica-timeout", "0.2")
    assert collect(*flags, replicas=[stub]).status == 1
    ended = merge()
    assert (ended.status, "holds an unfinished collection" in ended.stderr) == (2, True)
    assert merge("--overwrite").status == 0


def merge_process(output: Path, merged: Path, *, stop_at: str) -> subprocess.Popen[bytes]:
    """Start a merge that stops itself when it is about to call a function."""
    code = f"""
import os, signal
import latentwire_batch.output.publish, latentwire_batch.shards.merge
from latentwire_batch.shards.merge_command import main
{stop_at} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
main([{str(output)!r}, "-o", {str(merged)!r}])
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_killed_merge_leaves_no_dataset_and_a_rerun_completes(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path, tasks: Path
) -> None:
    collect_shards(collect, stub, 3)
    # With staged files, after some renames, and before the unfinished files are removed.
    places = [
        "shards.merge.build_card",
        "output.publish.os.replace",
        "output.publish.discard_partial",
    ]
    for place in places:
        process = merge_process(output, merged, stop_at=f"latentwire_batch.{place}")
        assert process.wait(180) == -signal.SIGKILL, place
        is_installed = place.endswith("discard_partial")
        assert (merged / "manifest.json").exists() == is_installed, place
        ended = merge()
        assert ended.status == 0, (place, ended.stderr)
        assert_complete(merged, tasks_of(tasks))
        shutil.rmtree(merged)


@pytest.mark.slow
def test_sixteen_shards_with_four_killed_are_the_dataset_of_one_run(
    collect: Collect, merge: Merge, stub: StubReplica, output: Path, merged: Path, tmp_path: Path
) -> None:
    tasks = write_tasks(tmp_path / "tasks.jsonl", 150)
    whole = tmp_path / "whole"
    assert collect("--output-dir", str(whole), replicas=[stub]).status == 0
    killed = (2, 7, 8, 13)
    args = ["--dataset", str(tasks), "--output-dir", str(output), "--seed", "7"]
    args += ["--max-new-tokens", "12", "--replica", stub.base_url, "--concurrency", "1"]
    for index in killed:
        stub.stall_after = len(stub.answered) + 4
        environ = os.environ | {"JOB_COMPLETION_INDEX": str(index)}
        command = [sys.executable, "-m", "latentwire_batch", *args, "--shard", "/16"]
        with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
            assert stub.stalled.wait(180)
            process.send_signal(signal.SIGKILL)
        stub.resume()
    stub.received.clear()
    for index in range(16):
        if index not in killed:
            assert collect("--shard", f"{index}/16", replicas=[stub]).status == 0
    ended = merge()
    assert ended.status == 2
    assert "shards 2/16, 7/16, 8/16 and 13/16 are unfinished" in ended.stderr
    for index in killed:
        ended = collect("--shard", f"{index}/16", replicas=[stub])
        assert ended.status == 0
        assert "resuming: " in ended.stderr
    # The killed ones kept all answers but the last one in flight.
    assert len(stub.received) <= 150 - 4 * 3
    assert merge().status == 0
    assert_equal_datasets(merged, whole)
    assert_complete(merged, tasks_of(tasks))
    assert not OutputLayout(merged).partial.exists()
