"""`latentwire.load`: rows by index and in order, matrices of every kind, files that are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentwire
import latentwire_batch
from latentwire import DatasetError, LatentRow
from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, decode_rows, encode_rows
from support.batch.encoded_tables import encode_file

RNG = np.random.default_rng(0)
LATENTS = [RNG.standard_normal((n, 5)).astype(np.float32) for n in (3, 1, 4, 2, 6)]
MATRICES = pa.list_(pa.list_(pa.float32()))


def table(**columns: Any) -> pa.Table:
    ids = [f"t{index}" for index in range(5)]
    texts = {"task": [f"Task {each}" for each in ids], "task_id": ids, "plan": ["p"] * 5}
    latents = pa.array([[list(row) for row in latent] for latent in LATENTS], MATRICES)
    return pa.table({**texts, "hidden_state": latents, **columns})


def write(path: Path, made: pa.Table) -> Path:
    pq.write_table(made, path, row_group_size=2)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path / "plain.parquet", table(seed=[*range(5)]))


def test_rows_are_found_by_index_slice_and_in_order(plain: Path) -> None:
    dataset = latentwire.load(plain)
    assert len(dataset) == 5
    in_order = list(dataset)
    assert [row.task_id for row in in_order] == ["t0", "t1", "t2", "t3", "t4"]
    for index in (0, 4, 1, 3, 2, -1, -5):
        row = dataset[index]
        assert (row.task, row.plan) == (f"Task t{index % 5}", "p")
        assert row.extras == {"seed": index % 5}
        assert row.hidden_state is not None
        np.testing.assert_array_equal(row.hidden_state, LATENTS[index])
        np.testing.assert_array_equal(in_order[index].matrices["hidden_state"], LATENTS[index])
    assert [row.task_id for row in dataset[3:0:-2]] == ["t3", "t1"]
    assert dataset[9:] == []
    for index in (5, -6):
        with pytest.raises(IndexError):
            dataset[index]


def test_an_arrow_directory_is_read_by_index_too(plain: Path, tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset(pq.read_table(plain))
    saved.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    dataset = latentwire.load(str(tmp_path / "saved"))
    assert [dataset[index].task_id for index in (4, 0, 2)] == ["t4", "t0", "t2"]
    for index in range(5):
        latent = dataset[index].hidden_state
        assert latent is not None
        assert not latent.flags.owndata
        np.testing.assert_array_equal(latent, LATENTS[index])


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_every_number_format_comes_back_as_float32(
    plain: Path, tmp_path: Path, dtype: NumberFormat
) -> None:
    dataset = latentwire.load(encode_file(plain, dtype, tmp_path / "encoded.parquet"))
    for index in (4, 0):
        found = dataset[index].hidden_state
        assert found is not None
        np.testing.assert_array_equal(found, decode_rows(encode_rows(LATENTS[index], dtype)))
    assert dataset[0].extras == {"seed": 0}
    assert dataset[0].encoded["hidden_state"].format == dtype


def test_matrices_besides_the_latent_are_named_by_their_columns(
    plain: Path, tmp_path: Path
) -> None:
    compressed = [latent[:1] for latent in LATENTS]
    column = pa.array([[list(row) for row in part] for part in compressed], MATRICES)
    both = pq.read_table(plain).append_column("hidden_state_comp", column)
    path = encode_file(write(tmp_path / "b.parquet", both), "int8", tmp_path / "c.parquet")
    row = latentwire.load(path)[2]
    assert row.matrices.keys() == {"hidden_state", "hidden_state_comp"}
    np.testing.assert_array_equal(row.compressed["hidden_state_comp"], compressed[2])
    only = latentwire.load(path, columns=["hidden_state_comp"])[2]
    assert only.hidden_state is None
    assert only.encoded.keys() == {"hidden_state_comp"}


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_a_dataset_without_latents_has_its_other_matrices(
    plain: Path, tmp_path: Path, dtype: NumberFormat
) -> None:
    renamed = pq.read_table(plain).rename_columns({"hidden_state": "hidden_state_comp"})
    path = write(tmp_path / "r.parquet", renamed)
    encode_file(path, dtype, tmp_path / "e.parquet", column="hidden_state_comp")
    rows = list(latentwire.load(tmp_path / "e.parquet"))
    assert all(row.hidden_state is None for row in rows)
    for row, latent in zip(rows, LATENTS, strict=True):
        expected = decode_rows(encode_rows(latent, dtype))
        np.testing.assert_array_equal(row.compressed["hidden_state_comp"], expected)


def test_matrices_of_whole_numbers_that_nothing_explains_are_plain_columns(tmp_path: Path) -> None:
    places = pa.array([[[1, 2]], [], [[3]], [[4]], [[5]]], pa.list_(pa.list_(pa.int16())))
    dataset = latentwire.load(write(tmp_path / "d.parquet", table(places=places)))
    assert dataset[0].extras == {"places": [[1, 2]]}


def test_workers_of_a_loader_open_the_dataset_again(plain: Path) -> None:
    """Loaders of torch send datasets to processes by this means."""
    copy = pickle.loads(pickle.dumps(latentwire.load(plain, columns=["hidden_state"])))
    assert [row.task_id for row in copy] == ["t0", "t1", "t2", "t3", "t4"]


def test_a_loader_of_torch_takes_it_as_it_is(plain: Path) -> None:
    import torch

    loader: Any = torch.utils.data.DataLoader(
        latentwire.load(plain),  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=lambda rows: [torch.tensor(row.hidden_state) for row in rows],
    )
    shapes = [tuple(latent.shape) for batch in loader for latent in batch]
    assert shapes == [latent.shape for latent in LATENTS]


def test_both_packages_offer_the_same_function(plain: Path) -> None:
    assert len(latentwire_batch.load(plain)) == 5


def declared(storage: object) -> dict[bytes, bytes]:
    return {b"latentwire": json.dumps({"storage": storage}).encode()}


INT8 = pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.int8())))
GOOD = {"dtype": "int8", "width": 2, "rotation": None}


@pytest.mark.parametrize(
    ("storage", "scales", "text"),
    [
        (None, [[1.0], [1.0]], "holds int8, not floating-point numbers, and the file does not say"),
        ({}, [[1.0], [1.0]], "the file does not say"),
        ({"hidden_state": {**GOOD, "dtype": "int4"}}, [[1.0], [1.0]], "the file does not say"),
        ({"hidden_state": {**GOOD, "dtype": "int9"}}, [[1.0], [1.0]], "storage of column hidden_s"),
        ({"hidden_state": {**GOOD, "width": None}}, [[1.0], [1.0]], "needs the width of the rows"),
        ({"hidden_state": {**GOOD, "width": -1}}, [[1.0], [1.0]], "storage of column"),
        ({"hidden_state": {**GOOD, "width": "2"}}, [[1.0], [1.0]], "storage of column"),
        ({"hidden_state": {**GOOD, "rotation": -1}}, [[1.0], [1.0]], "rotation must be from 0"),
        ({"hidden_state": {**GOOD, "rotation": "0"}}, [[1.0], [1.0]], "storage of column"),
        ({"hidden_state": {**GOOD, "width": 10**6, "rotation": 0}}, [[1.0]] * 2, "at most 65536"),
        ({"hidden_state": []}, [[1.0], [1.0]], "storage of column"),
        ({"hidden_state": GOOD}, None, "hidden_state_scale"),
        ({"hidden_state": GOOD}, [[1.0], [1.0, 2.0]], "row 1: the rows of hidden_state differ"),
        ({"hidden_state": GOOD}, [[1.0], None], "row 1: the rows of hidden_state differ"),
        ({"hidden_state": {**GOOD, "width": 3}}, [[1.0], [1.0]], "2 stored values are not 3"),
        ({"hidden_state": {**GOOD, "width": 4}}, [[1.0], [1.0]], "2 stored values are not 4"),
    ],
)
@pytest.mark.parametrize("is_by_index", [False, True])
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, storage: object, scales: Any, text: str, is_by_index: bool
) -> None:
    columns = {"task_id": ["a", "b"], "hidden_state": INT8}
    if scales is not None:
        columns["hidden_state_scale"] = pa.array(scales, pa.list_(pa.float32()))
    made = pa.table(columns)
    if storage is not None:
        made = made.replace_schema_metadata(declared(storage))
    pq.write_table(made, tmp_path / "d.parquet")

    def read() -> list[LatentRow]:
        dataset = latentwire.load(tmp_path / "d.parquet")
        return [dataset[0], dataset[1]] if is_by_index else list(dataset)

    with pytest.raises(DatasetError, match=text) as caught:
        read()
    assert str(caught.value).startswith("d.parquet: ")
    assert str(tmp_path) not in str(caught.value)


def test_a_column_that_another_tool_has_decoded_is_read_as_it_is(tmp_path: Path) -> None:
    made = table().replace_schema_metadata(declared({"hidden_state": {**GOOD, "width": 5}}))
    found = latentwire.load(write(tmp_path / "d.parquet", made))[0].hidden_state
    assert found is not None
    np.testing.assert_array_equal(found, LATENTS[0])


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and more", b"text"])
def test_what_is_no_dataset_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "d.parquet").write_bytes(content)
    with pytest.raises(DatasetError, match=r"^d\.parquet: "):
        latentwire.load(tmp_path / "d.parquet")


def test_a_column_that_is_not_there_is_refused(plain: Path) -> None:
    with pytest.raises(DatasetError, match="has no column hidden_state_comp"):
        latentwire.load(plain, columns=["hidden_state_comp"])
