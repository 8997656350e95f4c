from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire.compressors import compressor_names, make_compressor
from latentwire.number_formats import EncodedRows, decode_rows
from support.batch.evaluating import DECLARED, write_dataset
from support.batch.stored import Compress, Rows, matrices, read_both

WIDTH = 6


@pytest.mark.parametrize("name", compressor_names())
def test_each_latent_is_compressed_and_the_rest_stays(
    name: str, compress: Compress, dataset: Path, target: Path, rows: list[Rows]
) -> None:
    assert compress("--compressor", name, "--k", "4").status == 0
    table, before = read_both(target), pq.read_table(dataset)
    compressor = make_compressor(name, 4)
    for found, latent in zip(matrices(table, "hidden_state_comp", WIDTH), rows, strict=True):
        np.testing.assert_array_equal(found, compressor.compress(latent)["hidden_state_comp"])
    for column in before.column_names:
        assert table[column] == before[column]
    assert not (target / ".partial").exists()


def test_further_arrays_have_columns_of_their_own(
    compress: Compress, target: Path, rows: list[Rows]
) -> None:
    assert compress("--compressor", "novel:3", "--storage-dtype", "int8").status == 0
    table = read_both(target)
    places = matrices(table, "hidden_state_comp__places", 1)
    for found, latent in zip(places, rows, strict=True):
        expected = make_compressor("novel", 3).compress(latent)["places"]
        np.testing.assert_array_equal(found, expected.reshape(-1, 1))


def test_several_compressors_have_columns_by_their_names(compress: Compress, target: Path) -> None:
    flags = ("--compressor", "first", "--compressor", "svd:2", "--compressor", "svd:3", "--k", "4")
    assert compress(*flags).status == 0
    names = ["hidden_state_comp_first", "hidden_state_comp_svd-2", "hidden_state_comp_svd-3"]
    assert read_both(target).column_names == ["task", "task_id", "plan", "hidden_state", *names]
    manifest = json.loads((target / "manifest.json").read_text())
    assert list(manifest["compressors"]) == names
    described = manifest["compressors"]["hidden_state_comp_svd-2"]
    svd = make_compressor("svd", 2)
    assert described == {
        "name": "svd",
        "kind": "svd",
        "content_hash": svd.content_hash,
        "parameters": {"k": 2},
        "output": svd.output,
    }


def test_replace_leaves_the_full_latent_out(compress: Compress, target: Path) -> None:
    assert compress("--compressor", "first:2", "--replace").status == 0
    names = ["task", "task_id", "plan", "hidden_state_comp"]
    assert read_both(target).column_names == names
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["counts"]["latent_steps"] == 0


def test_the_files_and_the_manifest_say_what_was_done(compress: Compress, target: Path) -> None:
    assert compress("--compressor", "first:2", "--storage-dtype", "int4").status == 0
    manifest = json.loads((target / "manifest.json").read_text())
    metadata = read_both(target).schema.metadata
    declared = json.loads(metadata[b"latentwire"])
    for said in (manifest, declared):
        assert said["model"] == DECLARED["model"]
        assert said["compressors"]["hidden_state_comp"]["name"] == "first"
        assert said["storage"] == {
            column: {"dtype": "int4", "width": WIDTH, "rotation": 0}
            for column in ("hidden_state", "hidden_state_comp")
        }
    card = (target / "README.md").read_text()
    assert "first" in card
    assert make_compressor("first", 2).content_hash in card


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
def test_a_number_format_is_for_the_latent_and_the_new_column(
    dtype: str, compress: Compress, target: Path, rows: list[Rows], tmp_path: Path
) -> None:
    assert compress("--compressor", "mean-pool:4", "--storage-dtype", dtype).status == 0
    table = read_both(target)
    for column, expected in (
        ("hidden_state", rows),
        ("hidden_state_comp", [mean_pool(latent, 4) for latent in rows]),
    ):
        for found, exact in zip(decoded(table, column, dtype), expected, strict=True):
            assert found.shape == exact.shape
            np.testing.assert_allclose(found, exact, atol=0.6 if dtype == "int4" else 0.05)
    # What is stored already stays as it is, and can be compressed again.
    again = tmp_path / "again"
    flags = ("--compressor", "first:1", "--storage-dtype", dtype)
    assert compress(*flags, source=target, output=again).status == 0
    for column in table.column_names:
        assert read_both(again)[column] == table[column]
    assert "hidden_state_comp_first" in read_both(again).column_names


def test_the_card_of_a_plain_file_states_widths_and_formats(
    compress: Compress, target: Path, rows: list[Rows], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.parquet"
    texts = [f"task {index}" for index in range(len(rows))]
    kind = pa.list_(pa.list_(pa.float32()))
    latents = pa.array([latent.tolist() for latent in rows], kind)
    pq.write_table(pa.table({"task": texts, "a|b": texts, "hidden_state": latents}), plain)
    assert compress("--compressor", "first:2", "--storage-dtype", "int8", source=plain).status == 0
    card = (target / "README.md").read_text()
    assert f"| `hidden_state` | the latent: `[rows, {WIDTH}]` int8 codes |" in card
    assert f"the compressed latent, made by `first`: `[rows, {WIDTH}]` int8 codes" in card
    assert "`a\\|b`" in card
    assert "{width}" not in card


def test_a_number_format_alone_rewrites_a_dataset(compress: Compress, target: Path) -> None:
    assert compress("--storage-dtype", "float16").status == 0
    assert str(read_both(target).schema.field("hidden_state").type) == (
        "list<element: list<element: halffloat>>"
    )


def mean_pool(latent: Rows, k: int) -> Rows:
    count = len(latent)
    edges = [i * count // min(k, count) for i in range(min(k, count) + 1)] if count else [0]
    means = [latent[a:b].mean(axis=0) for a, b in zip(edges, edges[1:], strict=False)]
    return np.array(means, dtype=np.float32).reshape(-1, latent.shape[1])


def decoded(table: pa.Table, column: str, dtype: str) -> list[Rows]:
    numpy_dtype = {"float16": "<f2", "bfloat16": "<u2", "int8": "i1", "int4": "u1"}[dtype]
    stored_width = (WIDTH + 1) // 2 if dtype == "int4" else WIDTH
    found = []
    for index, value in enumerate(table[column].to_pylist()):
        values = np.array(value, dtype=numpy_dtype).reshape(-1, stored_width)
        scales = None
        if dtype in ("int8", "int4"):
            scales = np.array(table[f"{column}_scale"][index].as_py(), dtype=np.float32)
        encoded = EncodedRows(dtype, values, scales, WIDTH, None if scales is None else 0)  # type: ignore[arg-type]
        found.append(decode_rows(encoded))
    return found


def other_tools_dataset(path: Path, rows: list[Rows]) -> datasets.Dataset:
    """A dataset that `datasets` made, with columns that this project does not know."""
    count = len(rows)
    features = datasets.Features(
        {
            "task_id": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["easy", "hard"]),
            "hidden_state": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "notes": {"by": datasets.Value("string"), "scores": [datasets.Value("int64")]},
            "when": datasets.Value("timestamp[us]"),
            "task": datasets.Value("large_string"),
        }
    )
    values = {
        "task_id": [f"t{i}" for i in range(count)],
        "label": [i % 2 for i in range(count)],
        "hidden_state": [latent.tolist() for latent in rows],
        "notes": [{"by": "me" if i % 3 else None, "scores": [i] * (i % 3)} for i in range(count)],
        "when": [1_700_000_000 + i for i in range(count)],
        "task": [f"Task {i} — ☀" for i in range(count)],
    }
    made = datasets.Dataset.from_dict(values, features=features)
    if path.suffix == ".parquet":
        made.to_parquet(str(path))
    else:
        made.save_to_disk(str(path))
    return made


@pytest.mark.parametrize("name", ["in.parquet", "saved"])
def test_columns_of_other_tools_stay_with_their_types(
    name: str, compress: Compress, target: Path, rows: list[Rows], tmp_path: Path
) -> None:
    made = other_tools_dataset(tmp_path / "other" / name, rows)
    source = tmp_path / "other" / name
    assert compress("--compressor", "last:2", source=source).status == 0
    saved = datasets.load_from_disk(str(target / "hf_dataset"))
    read = datasets.load_dataset(
        "parquet", data_files=str(target / "data.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    for found in (saved, read):
        assert found.remove_columns("hidden_state_comp").features == made.features
        assert found.remove_columns("hidden_state_comp").to_list() == made.to_list()
        for row, latent in zip(found["hidden_state_comp"], rows, strict=True):
            assert row == latent[-2:].tolist()


def test_large_row_groups_and_dictionaries_of_other_writers_are_read(
    compress: Compress, target: Path, rows: list[Rows], tmp_path: Path
) -> None:
    plain = pq.read_table(write_dataset(tmp_path / "plain.parquet", rows * 9))
    table = plain.append_column("kind", pa.array(["a", "b"] * 36).dictionary_encode())
    pq.write_table(table, tmp_path / "dict.parquet", row_group_size=1000)
    assert compress("--compressor", "first:2", source=tmp_path / "dict.parquet").status == 0
    found = pq.read_table(target / "data.parquet")
    assert found["kind"].to_pylist() == ["a", "b"] * 36
    assert len(datasets.load_from_disk(str(target / "hf_dataset"))) == 72


def test_rows_are_cut_into_bounded_files(compress: Compress, target: Path) -> None:
    assert compress("--compressor", "first:2", "--max-shard-size", "300").status == 0
    assert len(list((target / "hf_dataset").glob("*.arrow"))) > 1
    read_both(target)
