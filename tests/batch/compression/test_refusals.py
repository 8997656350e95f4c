from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire.compressors import make_compressor
from latentwire_batch.compression import settings as compression_settings
from support.batch.collecting import Collect
from support.batch.evaluating import write_dataset
from support.batch.fake_compressors import Learned
from support.batch.stored import Compress, Rows, matrices, read_both
from support.batch.stub_replica import StubReplica

WIDTH = 6


def files_of(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


USAGE = {
    "no compressor": ((), "--compressor: is required, unless --storage-dtype is given"),
    "an unknown one": (
        ("--compressor", "mean", "--k", "4"),
        "--compressor: 'mean' is neither a directory of a compressor nor one of first, last",
    ),
    "no k": (("--compressor", "mean-pool"), "--k: is required by compressor mean-pool"),
    "replace alone": (("--replace", "--storage-dtype", "int8"), "--replace: needs --compressor"),
    "the same twice": (
        ("--compressor", "first", "--compressor", "first:4", "--k", "4"),
        "first is given twice with the same k",
    ),
    "a number format of one": (
        ("--compressor", "first:4@int8"),
        "--storage-dtype is for all",
    ),
    "a wrong format": (("--storage-dtype", "int3"), "--storage-dtype"),
}


@pytest.mark.parametrize("case", USAGE)
def test_flags_that_cannot_be_followed_write_nothing(
    case: str, compress: Compress, target: Path
) -> None:
    flags, message = USAGE[case]
    ended = compress(*flags)
    assert ended.status == 2
    assert message in ended.stderr
    assert not target.exists()


def test_an_output_that_is_the_input_is_refused(
    compress: Compress, dataset: Path, target: Path, tmp_path: Path
) -> None:
    assert compress("--compressor", "first:2").status == 0
    before = files_of(target)
    inside = target / "hf_dataset" / "new"
    flags = ("--compressor", "last:2", "--overwrite")
    for source, output, message in (
        (target, target, "is the dataset that is read"),
        (target / "data.parquet", target, "is the dataset that is read"),
        (target / "hf_dataset", target, "is the dataset that is read"),
        (target / "hf_dataset", inside, "is inside of the dataset that is read"),
        (dataset, tmp_path, "is the dataset that is read"),
    ):
        ended = compress(*flags, source=source, output=output)
        assert (ended.status, message in ended.stderr) == (2, True)
    assert files_of(target) == before


def test_another_dataset_is_replaced_only_on_request(
    compress: Compress, target: Path, tmp_path: Path, rows: list[Rows]
) -> None:
    assert compress("--compressor", "first:2").status == 0
    before = files_of(target)
    ended = compress("--compressor", "first:2")
    assert (ended.status, "nothing to do" in ended.stderr) == (0, True)
    ended = compress("--compressor", "mean-pool:3", "--replace")
    assert ended.status == 2
    first, mean_pool = (
        make_compressor(name, k).content_hash[:12] for name, k in (("first", 2), ("mean-pool", 3))
    )
    assert (
        f"hidden_state_comp was first (k 2, sha256 {first}), now mean-pool (k 3, sha256 "
        f"{mean_pool}); replace was False, now True"
    ) in ended.stderr
    other = write_dataset(tmp_path / "other.parquet", rows[:-1])
    ended = compress("--compressor", "first:2", source=other)
    assert (ended.status, "DATASET had 8 rows, now 7" in ended.stderr) == (2, True)
    changed = write_dataset(tmp_path / "changed.parquet", [latent + 1 for latent in rows])
    ended = compress("--compressor", "first:2", source=changed)
    assert (ended.status, "DATASET had other content" in ended.stderr) == (2, True)
    ended = compress("--compressor", "first:2", "--storage-dtype", "int8")
    assert "storage_dtype was absent, now int8" in ended.stderr
    assert files_of(target) == before
    assert compress("--compressor", "mean-pool:3", "--replace", "--overwrite").status == 0
    assert "hidden_state" not in read_both(target).column_names


def test_other_outputs_are_refused(
    compress: Compress, target: Path, collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--limit", "3", replicas=[stub]).status == 0
    ended = compress("--compressor", "first:2", output=output)
    assert (ended.status, "holds a dataset of another command" in ended.stderr) == (2, True)
    (output / "manifest.json").unlink()
    ended = compress("--compressor", "first:2", output=output)
    assert (ended.status, "holds a dataset without a manifest" in ended.stderr) == (2, True)
    target.write_text("a file")
    ended = compress("--compressor", "first:2")
    assert (ended.status, "--output-dir: is not a directory" in ended.stderr) == (2, True)


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Learned:
    made = Learned(WIDTH, "sender")
    monkeypatch.setattr(compression_settings, "_made", lambda _given, _k: made)
    return made


@pytest.mark.parametrize(
    ("width", "model", "message"),
    [
        (5, "sender", "mine was made for latents of width 5, and the dataset's width is 6"),
        (
            WIDTH,
            "other",
            "mine was made for latents of model other, and the dataset's model is sender",
        ),
    ],
)
def test_a_compressor_of_other_latents_is_refused(
    width: int, model: str, message: str, learned: Learned, compress: Compress, target: Path
) -> None:
    learned.of(width, model)
    ended = compress("--compressor", "mine")
    assert (ended.status, message in ended.stderr) == (2, True)
    assert not target.exists()


@pytest.mark.usefixtures("learned")
def test_rows_that_cannot_be_compressed_are_left_out_with_a_reason(
    compress: Compress, target: Path, dataset: Path, rows: list[Rows]
) -> None:
    rows[7][3, 2] = np.inf
    write_dataset(dataset, rows, seed=list(range(8)))
    flags = ("--compressor", "mine", "--storage-dtype", "float16")
    ended = compress(*flags)
    assert ended.status == 3
    assert "5 rows are written; 3 are left out" in ended.stderr
    table = read_both(target)
    assert table["seed"].to_pylist() == [0, 1, 2, 5, 6]
    lines = [json.loads(line) for line in (target / "failures.jsonl").read_text().splitlines()]
    assert [(line["row"], line["task_id"], line["code"]) for line in lines] == [
        (3, "t3", "compression-failed"),
        (4, "t4", "compression-failed"),
        (7, "t7", "number-format"),
    ]
    assert lines[0]["message"] == "mine: RuntimeError: a bad day"
    assert "hidden_state: row 3 holds inf" in lines[2]["message"]
    counts = json.loads((target / "manifest.json").read_text())["counts"]
    assert (counts["rows"], counts["finished"], counts["failed"]) == (8, 5, 3)
    ended = compress(*flags)
    assert (ended.status, "3 are left out" in ended.stderr) == (3, True)


def test_failures_of_the_collection_are_kept(
    learned: Learned,
    compress: Compress,
    target: Path,
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
) -> None:
    learned.of(8, "stub")
    texts = [json.loads(line)["task"] for line in tasks.read_text().splitlines()]
    stub.behaviour.task_faults = {texts[index]: [422] for index in (0, 3, 4)}
    flags = ("--columns", "prompt_tokens,completion_tokens,finish_reason")
    assert collect(*flags, replicas=[stub]).status == 3
    before = json.loads((output / "manifest.json").read_text())
    assert compress("--compressor", "mine", source=output).status == 3
    lines = [json.loads(line) for line in (target / "failures.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines)
    assert lines[0] == json.loads((output / "failures.jsonl").read_text().splitlines()[0])
    left_out = [line for line in lines if line["code"] == "compression-failed"]
    # The ids tell which rows of the input they are.
    assert [line["task_id"] for line in left_out] == [f"t{line['row']}" for line in left_out]
    assert len(left_out) > 1
    table = read_both(target)
    manifest = json.loads((target / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["finished"] == len(table) == before["counts"]["finished"] - len(left_out)
    assert counts["failed"] == 3 + len(left_out)
    for name in ("prompt_tokens", "completion_tokens"):
        assert counts[name] == sum(table[name].to_pylist())
    assert counts["finish_reasons"] == {"stop": len(table)}
    assert manifest["settings"]["data"] == before["settings"]["data"]


def test_a_dataset_without_full_latents_is_refused(
    compress: Compress, target: Path, tmp_path: Path
) -> None:
    assert compress("--compressor", "first:2", "--replace").status == 0
    ended = compress("--compressor", "first:1", source=target, output=tmp_path / "again")
    assert (ended.status, "has no column hidden_state" in ended.stderr) == (2, True)
    missing = compress("--compressor", "first:1", source=tmp_path / "none")
    assert (missing.status, "DATASET: no such file" in missing.stderr) == (2, True)


def test_latents_without_rows_need_a_declared_width(
    compress: Compress, target: Path, tmp_path: Path
) -> None:
    empty = [np.empty((0, WIDTH), np.float32)] * 3
    source = write_dataset(tmp_path / "empty.parquet", empty)
    ended = compress("--compressor", "first:1", source=source)
    assert (ended.status, "holds no latent with rows" in ended.stderr) == (2, True)
    declared = {"model": {"model": "m", "revision": None, "hidden_size": WIDTH}}
    source = write_dataset(tmp_path / "declared.parquet", empty, declared)
    assert compress("--compressor", "first:1", source=source).status == 0
    assert matrices(read_both(target), "hidden_state_comp", WIDTH)[0].shape == (0, WIDTH)


def test_a_column_of_the_wanted_name_is_not_replaced(
    compress: Compress, target: Path, dataset: Path
) -> None:
    table = pq.read_table(dataset)
    names = ["hidden_state_comp", "hidden_state_comp_first"]
    for name in names:
        table = table.append_column(name, pa.array(range(8)))
    pq.write_table(table, dataset)
    ended = compress("--compressor", "first:1")
    assert ended.status == 2
    assert "the dataset already has a column hidden_state_comp_first" in ended.stderr
    assert not target.exists()
