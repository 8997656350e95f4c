"""Compressing while collecting gives what compressing afterwards gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from latentwire_batch.__main__ import main
from latentwire_batch.compression import settings as compression_settings
from latentwire_batch.config import CollectSettings
from latentwire_batch.output.layout import OutputLayout
from support.batch.collecting import Collect, WatchedStream
from support.batch.fake_compressors import Learned
from support.batch.stored import Compress, matrices, read_both
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica

FLAGS = ("--compressor", "mean-pool", "--compressor", "novel:2", "--k", "4")
SCRIPT = Path(__file__).parents[3] / "batch" / "collect_hidden_states.py"
WIDTH = 8


@pytest.fixture
def afterwards(
    tasks: Path, tmp_path: Path, compress: Compress
) -> Callable[..., tuple[pa.Table, dict[str, object]]]:
    """Collect plainly, then compress: the table and the manifest."""

    def make(*flags: str, without: tuple[int, ...] = ()) -> tuple[pa.Table, dict[str, object]]:
        with StubReplica() as stub:
            texts = [json.loads(line)["task"] for line in tasks.read_text("utf-8").splitlines()]
            stub.behaviour.task_faults = {texts[index]: [422] for index in without}
            args = ["--dataset", str(tasks), "--output-dir", str(tmp_path / "plain")]
            more = ["--replica", stub.base_url, "--max-new-tokens", "12", "--seed", "7"]
            with redirect_stderr(WatchedStream()):
                assert main([*args, *more]) == (3 if without else 0)
        target = tmp_path / "afterwards"
        ended = compress(*(flags or FLAGS), source=tmp_path / "plain", output=target)
        assert ended.status == 0, ended.stderr
        return read_both(target), json.loads((target / "manifest.json").read_text("utf-8"))

    return make


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        if not name.startswith("hidden_state_comp"):
            assert found[name] == expected[name]
            continue
        width = 1 if name.endswith("__places") else WIDTH
        pairs = zip(matrices(found, name, width), matrices(expected, name, width), strict=True)
        for mine, other in pairs:
            np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


def test_three_replicas(
    collect: Collect, output: Path, afterwards: Callable[..., tuple[pa.Table, dict[str, object]]]
) -> None:
    with StubReplica() as one, StubReplica() as two, StubReplica() as three:
        assert collect(*FLAGS, replicas=[one, two, three]).status == 0
        assert all(stub.received for stub in (one, two, three))
    expected, said = afterwards()
    assert_same(read_both(output), expected)
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    for name in ("compressors", "counts", "settings", "latent", "model"):
        assert manifest[name] == said[name], name
    metadata = read_both(output).schema.metadata[b"latentwire"]
    assert json.loads(metadata)["compressors"] == manifest["compressors"]
    card = (output / "README.md").read_text("utf-8")
    for entry in manifest["compressors"].values():
        assert entry["content_hash"] in card
    assert not (output / ".partial").exists()


@pytest.mark.parametrize("flags", [FLAGS, (*FLAGS, "--replace")], ids=["next to it", "instead"])
def test_a_killed_collector_resumes(
    flags: tuple[str, ...],
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    afterwards: Callable[..., tuple[pa.Table, dict[str, object]]],
) -> None:
    args = ["--dataset", str(tasks), "--output-dir", str(output), "--max-new-tokens", "12"]
    args += ["--seed", "7", "--replica", stub.base_url, "--concurrency", "2", *flags]
    stub.stall_after = 17
    command = [sys.executable, "-m", "latentwire_batch", *args]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        assert stub.stalled.wait(180)
        process.kill()
        process.wait()
    answered = set(stub.answered)
    stub.resume()
    stub.received.clear()
    ended = collect(*flags, replicas=[stub])
    assert ended.status == 0, ended.stderr
    # Only the answers to the two rows in flight may be lost, and these need not be the last ones.
    assert len(answered & set(stub.received_ids())) <= 2 < len(answered)
    assert_same(read_both(output), afterwards(*flags)[0])


def test_with_replace_the_log_does_not_hold_the_full_latents(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    stub.behaviour.hidden_size, stub.behaviour.steps = 512, 12
    stub.behaviour.die_after = 20
    flags = ("--compressor", "first:1", "--replace", "--replica-timeout", "0.2")
    assert collect(*flags, replicas=[stub]).status == 1
    size = OutputLayout(output).log.stat().st_size
    # One row of 512 values for each of about 20 plans, not 12.
    assert 16 * 2048 < size < 20 * 4 * 2048
    stub.behaviour.die_after, stub.behaviour.is_dead = None, False
    assert collect(*flags, replicas=[stub]).status == 0
    assert "hidden_state" not in read_both(output).column_names
    card = (output / "README.md").read_text("utf-8")
    assert "only what compressors made" in card
    assert "All rows are kept" not in card


def test_failed_rows_are_retried_and_merged(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    afterwards: Callable[..., tuple[pa.Table, dict[str, object]]],
) -> None:
    texts = [json.loads(line)["task"] for line in tasks.read_text("utf-8").splitlines()]
    stub.behaviour.task_faults = {texts[index]: [422] for index in (0, 5, 6, 39)}
    flags = (*FLAGS, "--storage-dtype", "int8")
    assert collect(*flags, replicas=[stub]).status == 3
    assert len(read_both(output)) == 36
    stub.received.clear()
    assert collect("--retry-failed", *flags, replicas=[stub]).status == 0
    assert len(stub.received) == 4
    found, (expected, _) = read_both(output), afterwards(*flags)
    assert found.schema.equals(expected.schema)
    for name in expected.column_names:
        assert found[name] == expected[name]


def test_ranks_of_one_launch(
    output: Path,
    tasks: Path,
    stub: StubReplica,
    other_stub: StubReplica,
    afterwards: Callable[..., tuple[pa.Table, dict[str, object]]],
) -> None:
    command = [sys.executable, str(SCRIPT), "--model_name_or_path", "stub", "--seed", "7"]
    command += ["--dataset_path", str(tasks), "--output_dir", str(output)]
    command += ["--max_new_tokens", "12"]
    ranks = []
    for rank, replica in enumerate((stub, other_stub)):
        environ = os.environ | {
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "TORCHELASTIC_RUN_ID": "one",
            "LATENTWIRE_COLLECT_REPLICA": replica.base_url,
            "LATENTWIRE_COLLECT_COMPRESSOR": "mean-pool,novel:2",
            "LATENTWIRE_COLLECT_K": "4",
        }
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ))
    for process in ranks:
        _, stderr = process.communicate(timeout=180)
        assert process.returncode == 0, stderr
    assert len(stub.received) == len(other_stub.received) == 20
    assert_same(read_both(output), afterwards()[0])


def test_own_replicas(
    monkeypatch: pytest.MonkeyPatch,
    collect: Collect,
    output: Path,
    afterwards: Callable[..., tuple[pa.Table, dict[str, object]]],
) -> None:
    def command(_: CollectSettings) -> tuple[str, ...]:
        return ("support.batch.stub_replica",)

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("latentwire_batch.replicas.local_plan.serve_command", command)
    assert collect(*FLAGS).status == 0
    assert_same(read_both(output), afterwards()[0])


def test_k_is_the_compressors_and_all_rows_are_kept(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--compressor", "first", "--k", "2", replicas=[stub]).status == 0
    table = read_both(output)
    latents = matrices(table, "hidden_state", WIDTH)
    assert max(map(len, latents)) > 2
    for latent, found in zip(latents, matrices(table, "hidden_state_comp", WIDTH), strict=True):
        np.testing.assert_array_equal(found, latent[:2])
    assert json.loads((output / "manifest.json").read_text("utf-8"))["settings"]["k"] is None


def test_other_compressors_are_refused_for_an_output_that_exists(
    collect: Collect, stub: StubReplica
) -> None:
    assert collect("--compressor", "first:2", replicas=[stub]).status == 0
    assert collect("--compressor", "first:2", replicas=[stub]).status == 0
    for flags, message in (
        (("--compressor", "first:3"), "hidden_state_comp was first (k 2, sha256 "),
        (("--compressor", "last:2"), "now last (k 2, sha256 "),
        ((), "now absent"),
        (("--compressor", "first:2", "--replace"), "replace was False, now True"),
        (
            ("--compressor", "first:2", "--storage-dtype", "int8"),
            "storage_dtype was 'float32', now 'int8'",
        ),
    ):
        ended = collect(*flags, replicas=[stub])
        assert (ended.status, message in ended.stderr) == (2, True), ended.stderr
    ended = collect("--replace", replicas=[stub])
    assert (ended.status, "--replace: needs --compressor" in ended.stderr) == (2, True)


@pytest.mark.parametrize(
    ("width", "model", "message"),
    [
        (5, "stub", "mine was made for latents of width 5, and the served model's width is 8"),
        (8, "x", "mine was made for latents of model x, and the served model's model is stub"),
    ],
)
def test_a_compressor_of_another_model_is_refused_before_the_first_row(
    width: int,
    model: str,
    message: str,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Learned(width, model)
    monkeypatch.setattr(compression_settings, "_made", lambda _given, _k: made)
    ended = collect("--compressor", "mine", replicas=[stub])
    assert (ended.status, message in ended.stderr) == (2, True), ended.stderr
    assert not stub.received
    assert not output.exists()


def test_a_row_that_cannot_be_compressed_fails_and_the_others_are_stored(
    collect: Collect, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Learned(8, "stub")
    monkeypatch.setattr(compression_settings, "_made", lambda _given, _k: made)
    with StubReplica(Behaviour()) as stub:
        ended = collect("--compressor", "mine", replicas=[stub])
    assert ended.status == 3
    lines = (output / "failures.jsonl").read_text("utf-8").splitlines()
    failures = [json.loads(line) for line in lines]
    assert {failure["code"] for failure in failures} == {"compression-failed"}
    messages = {failure["message"] for failure in failures}
    assert "mine: RuntimeError: a bad day" in messages
    assert f"{len(failures)} failed with compression-failed" in ended.stderr
    table = read_both(output)
    assert len(table) == 40 - len(failures)
    assert not {5, 12} & {len(latent) for latent in matrices(table, "hidden_state", WIDTH)}


def test_a_compressed_output_can_be_completed_by_collecting(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tmp_path: Path,
    compress: Compress,
    tasks: Path,
) -> None:
    texts = [json.loads(line)["task"] for line in tasks.read_text("utf-8").splitlines()]
    stub.behaviour.task_faults = {texts[index]: [422] for index in (0, 17)}
    assert collect(replicas=[stub]).status == 3
    flags = (*FLAGS, "--storage-dtype", "float16")
    target = tmp_path / "target"
    assert compress(*flags, source=output, output=target).status == 0
    assert len((target / "failures.jsonl").read_text("utf-8").splitlines()) == 2
    stub.received.clear()
    retried = ("--retry-failed", "--output-dir", str(target), *flags)
    ended = collect(*retried, replicas=[stub])
    assert ended.status == 0, ended.stderr
    assert sorted(map(str, stub.received_ids())) == ["t0", "t17"]
    table = read_both(target)
    assert table["task_id"].to_pylist() == [f"t{index}" for index in range(40)]
    assert not (target / "failures.jsonl").exists()
