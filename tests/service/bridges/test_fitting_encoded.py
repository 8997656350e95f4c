"""`latentwire fit-bridge` on datasets that store their latents in any number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentwire.number_formats import NUMBER_FORMATS, NumberFormat, decode_rows, encode_rows
from latentwire_service.bridges.fitting.command import main
from latentwire_service.bridges.manifest import read_manifest
from latentwire_service.fitting.samples import Dataset
from support.batch.encoded_tables import encode_file
from support.bridge_folders import write_dataset
from support.tiny_models import save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitting")
    save_model(folder / "tiny")
    write_dataset(folder / "out" / "data.parquet")
    return folder


def command(place: Path, output: Path, *more: str) -> list[str]:
    return [
        *(str(place / "out"), "-o", str(output), "--model", str(place / "tiny")),
        *("--device", "cpu", "--held-out", "0.3", "--threads", "1", *more),
    ]


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_latents_are_read_in_every_number_format(
    place: Path, tmp_path: Path, dtype: NumberFormat
) -> None:
    plain = list(Dataset.from_path(place / "out").samples())
    path = encode_file(place / "out" / "data.parquet", dtype, tmp_path / "data.parquet")
    found = list(Dataset.from_path(path).samples())
    assert [sample.task_id for sample in found] == [sample.task_id for sample in plain]
    for sample, before in zip(found, plain, strict=True):
        expected = decode_rows(encode_rows(before.rows, dtype))
        np.testing.assert_array_equal(sample.rows, expected)
        assert sample.token_ids == before.token_ids


def test_a_bridge_is_fitted_to_int8_latents(place: Path, tmp_path: Path) -> None:
    args = command(place, tmp_path / "b", "--kind", "ridge")
    args[0] = str(encode_file(place / "out" / "data.parquet", "int8", tmp_path / "data.parquet"))
    assert main(args) == 0
    scores = read_manifest(tmp_path / "b").scores["held_out"]
    main(command(place, tmp_path / "plain", "--kind", "ridge"))
    plain = read_manifest(tmp_path / "plain").scores["held_out"]
    assert scores["matched"] == pytest.approx(plain["matched"], abs=0.02)


def test_codes_that_nothing_explains_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encode_file(place / "out" / "data.parquet", "int8", tmp_path / "data.parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    args = command(place, tmp_path / "b")
    args[0] = str(path)
    assert main(args) == 2
    assert "holds int8, and the file does not say what" in capsys.readouterr().err
