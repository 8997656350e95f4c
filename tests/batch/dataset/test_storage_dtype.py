"""`--storage-dtype`: what is stored and read, runs that resume, values that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentwire
from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, encode_rows
from latentwire.storage import DECLARATION_KEY
from latentwire_batch.dataset.files import locate
from latentwire_batch.dataset.reader import stored_rows
from support.batch import stub_answers
from support.batch.collecting import Collect, write_tasks
from support.batch.dataset_oracle import tasks_of
from support.batch.stored_formats import decoded_by_the_card, kept_latents, sent_latents
from support.batch.stub_answers import Behaviour
from support.batch.stub_replica import StubReplica

VALUE_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
    "int8": pa.int8(),
    "int4": pa.uint8(),
}
ENCODED = [dtype for dtype in NUMBER_FORMATS if dtype != "float32"]


def latents_of(path: Path) -> list[Any]:
    return [row.hidden_state for row in latentwire.load(path)]


def assert_latents(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_float32_comes_back_from_every_form_of_an_output(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, dtype: NumberFormat
) -> None:
    assert collect("--storage-dtype", dtype, replicas=[stub]).status == 0
    expected = kept_latents(tasks, dtype)
    for part in ("", "data.parquet", "hf_dataset"):
        assert_latents(latents_of(output / part), expected)
    for part in ("data.parquet", "hf_dataset"):
        rows = [row.latent for row in stored_rows(locate(output / part))]
        assert_latents(rows, expected)
    assert [row.task_id for row in latentwire.load(output)] == [
        task_id for task_id, _ in tasks_of(tasks)
    ]


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_both_files_hold_the_same_stored_values(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, dtype: NumberFormat
) -> None:
    collect("--storage-dtype", dtype, "--columns", "seed", replicas=[stub])
    table = pq.read_table(output / "data.parquet")
    scales = ["hidden_state_scale"] if dtype in ("int8", "int4") else []
    assert table.schema.names == ["task", "task_id", "plan", "hidden_state", *scales, "seed"]
    assert table.schema.field("hidden_state").type.value_type.value_type == VALUE_TYPES[dtype]
    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert table.cast(saved.data.schema).equals(saved.data.table)
    for stored, rows in zip(table.to_pylist(), sent_latents(tasks), strict=True):
        encoded = encode_rows(rows, dtype)
        assert stored["hidden_state"] == encoded.values.tolist()
        if encoded.scales is not None:
            assert stored["hidden_state_scale"] == encoded.scales.tolist()


def test_a_run_without_the_flag_says_nothing_new(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect(replicas=[stub])
    manifest = json.loads((output / "manifest.json").read_text())
    assert "storage" not in manifest
    assert "storage_dtype" not in manifest["settings"]
    metadata = pq.read_schema(output / "data.parquet").metadata
    assert "storage" not in json.loads(metadata[DECLARATION_KEY])


@pytest.mark.parametrize("dtype", ENCODED)
def test_manifest_files_and_card_say_how_the_latents_are_stored(
    collect: Collect, stub: StubReplica, output: Path, dtype: NumberFormat
) -> None:
    collect("--storage-dtype", dtype, replicas=[stub])
    rotation = 0 if dtype in ("int8", "int4") else None
    expected = {"hidden_state": {"dtype": dtype, "width": 8, "rotation": rotation}}
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["storage"] == expected
    assert manifest["settings"]["storage_dtype"] == dtype
    metadata = pq.read_schema(output / "data.parquet").metadata
    assert json.loads(metadata[DECLARATION_KEY])["storage"] == expected
    card = (output / "README.md").read_text()
    shown = "-" if rotation is None else rotation
    assert f"| `hidden_state` | {dtype} | 8 | {shown} |" in card
    assert 'latentwire.load(".")' in card


def by_pyarrow(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "data.parquet").to_pylist()
    return rows


def by_pandas(output: Path) -> list[dict[str, Any]]:
    frame = pd.read_parquet(output / "data.parquet")
    return [
        {name: _stacked(value) for name, value in row.items()} for row in frame.to_dict("records")
    ]


def _stacked(value: Any) -> Any:
    is_nested = isinstance(value, np.ndarray) and value.dtype == object
    return np.stack(list(value)) if is_nested else value


def by_polars(output: Path) -> list[dict[str, Any]]:
    return pl.read_parquet(output / "data.parquet").to_dicts()


def by_duckdb(output: Path) -> list[dict[str, Any]]:
    found = duckdb.sql(f"SELECT * FROM read_parquet('{output / 'data.parquet'}')")
    assert found is not None
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_datasets(output: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in datasets.load_from_disk(str(output / "hf_dataset"))]


def by_load_dataset(output: Path) -> list[dict[str, Any]]:
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(output / "data.parquet"),
        split="train",
        cache_dir=str(output / "cache"),
    )
    return [dict(row) for row in loaded]


READERS = [by_pyarrow, by_pandas, by_polars, by_duckdb, by_datasets, by_load_dataset]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("dtype", ENCODED)
def test_any_reader_decodes_the_file_by_its_card(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    dtype: NumberFormat,
    read: Any,
) -> None:
    """The functions that the card prints share no code with ours."""
    stub.behaviour.hidden_size = 37
    collect("--storage-dtype", dtype, "--limit", "5", replicas=[stub])
    expected = kept_latents(tasks, dtype, hidden_size=37)[:5]
    rows = read(output)
    assert len(rows) == 5
    for row, kept in zip(rows, expected, strict=True):
        decoded = decoded_by_the_card(output, row)
        assert (decoded.shape, decoded.dtype) == (kept.shape, np.float32)
        np.testing.assert_allclose(decoded, kept, rtol=0, atol=1e-5 * np.abs(kept).max())


def test_the_hub_library_reads_the_features_of_the_card(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    collect("--storage-dtype", "int4", replicas=[stub])
    loaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))["train"]
    saved = datasets.load_from_disk(str(output / "hf_dataset"))
    assert loaded.data.table.equals(saved.data.table)
    assert loaded.features["hidden_state_scale"] == datasets.Sequence(datasets.Value("float32"))


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ("int8", "float32", "storage_dtype was 'int8', now 'float32'"),
        ("float32", "int8", "storage_dtype was 'float32', now 'int8'"),
        ("int8", "int4", "storage_dtype was 'int8', now 'int4'"),
    ],
)
def test_a_finished_output_in_another_number_format_is_refused(
    first: str, second: str, text: str, collect: Collect, stub: StubReplica, output: Path
) -> None:
    collect("--storage-dtype", first, replicas=[stub])
    before = (output / "data.parquet").read_bytes()
    ended = collect("--storage-dtype", second, replicas=[stub])
    assert ended.status == 2
    assert text in ended.stderr
    assert (output / "data.parquet").read_bytes() == before


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_an_unfinished_run_resumes_in_its_number_format_only(
    collect: Collect, output: Path, tasks: Path, dtype: NumberFormat
) -> None:
    with StubReplica(Behaviour(die_after=11)) as dying:
        ended = collect(*("--storage-dtype", dtype, "--replica-timeout", "0.5"), replicas=[dying])
    assert ended.status not in (0, 2)
    assert (output / ".partial").exists()
    with StubReplica() as stub:
        other = "int4" if dtype != "int4" else "float32"
        refused = collect("--storage-dtype", other, replicas=[stub])
        assert refused.status == 2
        assert "storage_dtype was" in refused.stderr
        resumed = collect("--storage-dtype", dtype, replicas=[stub])
    assert resumed.status == 0
    assert "resuming: " in resumed.stderr
    assert_latents(latents_of(output), kept_latents(tasks, dtype))


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_retried_rows_are_merged_with_the_stored_ones_bit_for_bit(
    collect: Collect, stub: StubReplica, output: Path, tasks: Path, dtype: NumberFormat
) -> None:
    """Rows that were decoded and encoded again would differ."""
    stub.behaviour.hidden_size = 37
    names = [task for _, task in tasks_of(tasks)]
    stub.behaviour.task_faults[names[3]] = [422]
    assert collect("--storage-dtype", dtype, replicas=[stub]).status != 0
    assert len(latents_of(output)) == 39
    merged = collect("--storage-dtype", dtype, "--retry-failed", replicas=[stub])
    assert merged.status == 0
    assert_latents(latents_of(output), kept_latents(tasks, dtype, hidden_size=37))
    table = pq.read_table(output / "data.parquet")
    for stored, rows in zip(table.to_pylist(), sent_latents(tasks, 37), strict=True):
        assert stored["hidden_state"] == encode_rows(rows, dtype).values.tolist()


def test_a_value_beyond_float16_fails_its_row_and_stores_the_others(
    collect: Collect,
    stub: StubReplica,
    output: Path,
    tasks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = tasks_of(tasks)[4][1]
    made = stub_answers.latent

    def with_a_large_value(task: str, *args: Any) -> Any:
        rows = made(task, *args)
        if task == large:
            rows[-1, 2] = -70_000
        return rows

    monkeypatch.setattr(stub_answers, "latent", with_a_large_value)
    ended = collect("--storage-dtype", "float16", replicas=[stub])
    assert ended.status == 3
    failures = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    place = len(sent_latents(tasks)[4]) - 1
    assert failures == [
        {
            "row": 4,
            "task_id": "t4",
            "code": "number-format",
            "message": f"hidden_state: row {place} holds -70000 at position 2, beyond the largest "
            "float16 value, 65504",
        }
    ]
    kept = kept_latents(tasks, "float16")
    assert_latents(latents_of(output), kept[:4] + kept[5:])


def test_latents_without_rows_have_the_width_of_the_others(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    assert collect("--storage-dtype", "int4", "--k", "0", replicas=[stub]).status == 0
    assert {rows.shape for rows in latents_of(output)} == {(0, 8)}


def test_shards_are_bounded_in_every_number_format(
    collect: Collect, stub: StubReplica, output: Path, tmp_path: Path
) -> None:
    stub.behaviour.hidden_size = 1000
    collect("--storage-dtype", "int8", "--max-shard-size", "50000", replicas=[stub])
    shards = list((output / "hf_dataset").glob("*.arrow"))
    assert len(shards) > 3
    # One row may be larger than the limit, and each file has a schema of its own.
    assert max(file.stat().st_size for file in shards) < 60_000
    assert_latents(latents_of(output), kept_latents(write_tasks(tmp_path / "t", 40), "int8", 1000))


def test_files_shrink_with_the_number_format(
    collect: Collect, stub: StubReplica, output: Path
) -> None:
    sizes = {}
    stub.behaviour.hidden_size = 600
    for dtype in NUMBER_FORMATS:
        collect("--storage-dtype", dtype, "--overwrite", replicas=[stub])
        sizes[dtype] = sum(file.stat().st_size for file in (output / "hf_dataset").iterdir())
    for dtype, part in (("float16", 0.52), ("bfloat16", 0.52), ("int8", 0.27), ("int4", 0.15)):
        assert sizes[dtype] < part * sizes["float32"]
