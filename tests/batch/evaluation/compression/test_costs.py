"""What a codec costs and loses by itself, against formulas in numpy. No service runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentwire.compressors import make_compressor
from latentwire.number_formats import decode_rows, encode_rows
from latentwire_batch.evaluation.compression import measure, sketches
from latentwire_batch.evaluation.compression.sketches import Candidates, sketch_of
from support.batch.evaluating import Compare, latents, write_dataset
from support.processes.peak_memory import peaks

Rows = npt.NDArray[np.float32]


def similar(count: int, num_rows: int = 6, width: int = 24) -> list[Rows]:
    """Latents with much in common, as those of one model have."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((num_rows, width)) * 3
    return [
        (common + rng.standard_normal((num_rows, width))).astype(np.float32) for _ in range(count)
    ]


def estimate(name: str, rows: Rows) -> Rows:
    """The estimates of the full latent, as the documentation states them."""
    if name == "first:2":
        return np.concatenate([rows[:2], np.zeros_like(rows[2:])])
    if name == "full@int8":
        return decode_rows(encode_rows(rows, "int8"))
    if name == "full@int4-unrotated":
        return decode_rows(encode_rows(rows, "int4", rotation=None))
    count, result = min(2, len(rows)), np.empty_like(rows)
    for index in range(count):
        part = slice(index * len(rows) // count, (index + 1) * len(rows) // count)
        result[part] = rows[part].astype(np.float64).mean(axis=0)
    return result


def cosine(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    if not left.any():
        return 0.0
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


def size(name: str, rows: Rows) -> int:
    num_rows, width = (int(size) for size in rows.shape)
    return {
        "full": 4 * num_rows * width,
        "first:2": 4 * 2 * width,
        "mean-pool:2": 4 * 2 * width,
        "full@int8": num_rows * (width + 4),
        "full@int4-unrotated": num_rows * (width // 2 + 4),
    }[name]


NAMES = ["first:2", "mean-pool:2", "full@int8", "full@int4-unrotated"]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_and_reconstruction_are_those_of_the_formulas(
    compare: Compare, tmp_path: Path, name: str
) -> None:
    rows = latents(7)
    done = compare(write_dataset(tmp_path / "d.parquet", rows), [name])
    assert done.status == 0, done.err
    found = done.row(name)
    estimates = [estimate(name, each).astype(np.float64) for each in rows]
    sizes = [size(name, each) for each in rows]
    assert found["num_bytes"] == pytest.approx(np.mean(sizes))
    assert found["fraction"] == pytest.approx(sum(sizes) / sum(each.nbytes for each in rows))
    pairs = list(zip(estimates, rows, strict=True))
    errors = [np.linalg.norm(guess - whole) / np.linalg.norm(whole) for guess, whole in pairs]
    assert found["relative_error"] == pytest.approx(np.mean(errors), rel=1e-6)
    cosines = []
    for guesses, wholes in pairs:
        each = zip(guesses, wholes.astype(np.float64), strict=True)
        cosines.append(np.mean([cosine(a, b) for a, b in each]))
    assert found["cosine"] == pytest.approx(np.mean(cosines), rel=1e-6)
    assert found["compress_ms"] >= 0
    assert found["decompress_ms"] >= 0


def test_the_full_latent_is_the_first_row_and_loses_nothing(
    compare: Compare, tmp_path: Path
) -> None:
    done = compare(write_dataset(tmp_path / "d.parquet", latents(5)), ["first:1"])
    assert [row["name"] for row in done.report["rows"]] == ["full", "first:1"]
    full = done.row("full")
    assert (full["fraction"], full["relative_error"], full["recall"]) == (1.0, 0.0, 1.0)
    assert full["cosine"] == pytest.approx(1.0)
    assert (full["compressor"], full["dtype"], full["rotation"]) == (None, "float32", None)
    assert done.row("first:1")["compressor"] == {
        "name": "first",
        "kind": "first",
        "k": 1,
        "content_hash": make_compressor("first", 1).content_hash,
        "output": "rows",
        "parameters": {"k": 1},
    }


def test_further_arrays_count_and_keep_float32(compare: Compare, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d.parquet", similar(4))
    found = compare(dataset, ["novel:2@int8"]).row("novel:2@int8")
    assert found["num_bytes"] == 2 * (24 + 4) + 2 * 4


def exact_ranks(estimates: list[Rows], rows: list[Rows]) -> list[int]:
    """Ranks by the cosines of the whole latents, both sides less their mean."""
    left = np.array([each.reshape(-1) for each in estimates], dtype=np.float64)
    right = np.array([each.reshape(-1) for each in rows], dtype=np.float64)
    left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    scores = left @ right.T
    return [int((line > line[index]).sum()) + 1 for index, line in enumerate(scores)]


@pytest.mark.parametrize("name", ["first:2", "mean-pool:2", "full@int4-unrotated"])
def test_retrieval_is_that_of_whole_latents(compare: Compare, tmp_path: Path, name: str) -> None:
    rows = similar(60, num_rows=8, width=64)
    # Noise that the first rows do not tell apart.
    for each in rows[1::2]:
        each[:2] = rows[0][:2] + (each[:2] - rows[0][:2]) * 0.3
    found = compare(write_dataset(tmp_path / "d.parquet", rows), [name]).row(name)
    ranks = exact_ranks([estimate(name, each) for each in rows], rows)
    assert found["recall"] == pytest.approx(np.mean([rank == 1 for rank in ranks]), abs=0.05)
    assert found["reciprocal_rank"] == pytest.approx(np.mean([1 / r for r in ranks]), abs=0.05)


def test_latents_that_are_equal_share_their_rank(compare: Compare, tmp_path: Path) -> None:
    rows = similar(3)
    found = compare(write_dataset(tmp_path / "d.parquet", [*rows, rows[0], rows[0]]), ["last:6"])
    row = found.row("last:6")
    # Three have the middle of ranks 1 to 3; two have rank 1.
    assert row["recall"] == pytest.approx((3 / 3 + 2) / 5)
    assert row["reciprocal_rank"] == pytest.approx((3 / 2 + 2) / 5)


def test_a_latent_that_says_nothing_finds_its_own_by_chance() -> None:
    rows = np.array([sketch_of(each) for each in similar(4)], np.float32)
    rank = Candidates(rows).rank(np.zeros(sketches.SKETCH_SIZE), 0)
    assert (rank.recall, rank.reciprocal) == (1 / 4, 1 / 2.5)


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_sketches_keep_scalar_products_of_long_latents(offset: float) -> None:
    rng = np.random.default_rng(3)
    # More values than are hashed at a time.
    common, *own = rng.standard_normal((3, 700, 100)).astype(np.float32)
    left, right = 0.5 * common + own[0] + np.float32(offset), common + own[1]
    exact = float((left * right).sum() / (np.linalg.norm(left) * np.linalg.norm(right)))
    first, second = sketch_of(left), sketch_of(right)
    found = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    assert found == pytest.approx(exact, abs=0.05)
    assert np.linalg.norm(first) == pytest.approx(np.linalg.norm(left), rel=0.05)
    assert np.allclose(sketch_of(left[:300]) + sketch_of(_below(left, 300)), first, atol=1e-2)


def _below(rows: Rows, start: int) -> Rows:
    return np.concatenate([np.zeros_like(rows[:start]), rows[start:]])


def test_only_the_first_latents_are_candidates(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MAX_CANDIDATES", 3)
    done = compare(write_dataset(tmp_path / "d.parquet", similar(8)), ["first:3"])
    assert (done.report["num_candidates"], done.report["num_tasks"]) == (3, 8)
    assert done.row("full")["recall"] == 1.0
    assert done.row("first:3")["relative_error"] > 0


def test_a_latent_that_a_format_cannot_hold_is_left_out_of_every_row(
    compare: Compare, tmp_path: Path
) -> None:
    rows = similar(4)
    rows[2] = rows[2] * np.float32(1e6)
    done = compare(write_dataset(tmp_path / "d.parquet", rows), ["full@float16", "first:2"])
    assert done.status == 3
    assert "1 tasks were set aside; the first: full@float16: row 0" in " ".join(done.out.split())
    assert (done.report["num_tasks"], done.report["num_candidates"]) == (3, 3)
    errors = [
        np.linalg.norm(each[2:].astype(np.float64)) / np.linalg.norm(each.astype(np.float64))
        for each in [*rows[:2], rows[3]]
    ]
    assert done.row("first:2")["relative_error"] == pytest.approx(np.mean(errors), rel=1e-6)


def write_large(path: Path, count: int) -> Path:
    """Latents of 512 KiB, in small row groups as `collect` writes them."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        {
            "task_id": pa.string(),
            "plan": pa.string(),
            "hidden_state": pa.list_(pa.list_(pa.float32())),
        }
    )
    offsets = pa.array(np.arange(513, dtype=np.int32) * 256)
    with pq.ParquetWriter(path, schema) as writer:
        for index in range(count):
            values = pa.array(rng.standard_normal(512 * 256, np.float32))
            rows = pa.ListArray.from_arrays(offsets, values)
            latent = pa.ListArray.from_arrays(pa.array([0, 512], pa.int32()), rows)
            columns = [pa.array([f"t{index}"]), pa.array(["Go."]), latent]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return path


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset_and_no_service_is_imported(tmp_path: Path) -> None:
    # Enough that a whole batch of rows is read in both.
    datasets = [
        write_large(tmp_path / "small.parquet", 24),
        write_large(tmp_path / "large.parquet", 88),
    ]
    names = ["first:8", "mean-pool:8@int8", "full@int4"]
    flags = [part for name in names for part in ("--compressor", name)]
    runs = [[str(dataset), *flags] for dataset in datasets]
    small, large = peaks("from latentwire_batch.evaluation.command import main", runs)
    assert not large.modules & {"torch", "transformers", "latentwire_service", "uvicorn"}
    # 64 latents more, 32 MiB; their sketches are 2 MiB.
    assert large.num_bytes - small.num_bytes < 16 << 20
