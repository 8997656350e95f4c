"""`latentwire fit-compressor`: what it learns, writes, refuses and continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.compressors import COMPRESSED, make_compressor
from latentwire.compressors.base import Rows
from latentwire.held_out import is_held_out
from latentwire_service.compressors.fitting import row_recipes
from latentwire_service.compressors.fitting.command import main
from latentwire_service.compressors.fitting.moments import Moments
from support.fits.latent_files import WIDTH, random_latents, write_latents
from support.processes.peak_memory import peaks

FAST = ("--device", "cpu", "--threads", "1", "--held-out", "0.25")


@pytest.fixture(scope="module")
def latents() -> list[Rows]:
    return random_latents(60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, latents: list[Rows]) -> Path:
    folder = tmp_path_factory.mktemp("fitting") / "out"
    write_latents(folder / "data.parquet", latents)
    return folder


def command(dataset: Path, output: Path, *more: str) -> list[str]:
    return [str(dataset), "-o", str(output), *FAST, *more]


def training_rows(latents: list[Rows]) -> list[Rows]:
    return [rows for index, rows in enumerate(latents) if not is_held_out(str(index), 0, 0.25)]


def manifest_of(output: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((output / "compressor.json").read_text())
    return value


@pytest.mark.parametrize("rows", ["mean-pool", "first", "stride", "dct", "svd", "novel"])
def test_pca_finds_the_directions_of_largest_variance(
    dataset: Path, latents: list[Rows], tmp_path: Path, rows: str
) -> None:
    output = tmp_path / "mine"
    more = ("--kind", "pca", "--k", "4", "--dim", "5", "--rows", rows)
    assert main(command(dataset, output, *more)) == 0
    reduction = make_compressor(rows, 4)
    reduced = [reduction.compress(each)[COMPRESSED] for each in training_rows(latents)]
    stacked = np.concatenate(reduced).astype(np.float64)
    mean = stacked.mean(0)
    directions = np.linalg.svd(stacked - mean)[2][:5]
    directions *= np.sign(np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1))
    compressor = make_compressor(str(output))
    for each in latents[:10]:
        kept = reduction.compress(each)
        arrays = compressor.compress(each)
        np.testing.assert_allclose(
            arrays[COMPRESSED], (kept[COMPRESSED] - mean) @ directions.T, atol=1e-4
        )
        estimate = (arrays[COMPRESSED] @ directions + mean).astype(np.float32)
        wanted = reduction.decompress({**kept, COMPRESSED: estimate}, len(each))
        np.testing.assert_allclose(
            compressor.decompress(arrays, len(each)), wanted, rtol=1e-4, atol=1e-3
        )


def test_without_k_every_row_is_coded(dataset: Path, latents: list[Rows], tmp_path: Path) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, "--kind", "pca", "--dim", str(WIDTH))) == 0
    compressor = make_compressor(str(output))
    assert compressor.k is None
    for rows in (*latents[:5], np.zeros((0, WIDTH), np.float32)):
        arrays = compressor.compress(rows)
        assert arrays[COMPRESSED].shape == rows.shape
        # All directions: nothing is lost.
        np.testing.assert_allclose(compressor.decompress(arrays, len(rows)), rows, atol=1e-4)


def test_the_directory_says_what_was_done(
    dataset: Path, latents: list[Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, "--kind", "pca", "--k", "4", "--dim", "6")) == 0
    assert sorted(file.name for file in output.iterdir()) == [
        "README.md",
        "compressor.json",
        "compressor.safetensors",
    ]
    manifest = manifest_of(output)
    assert manifest["source"]["model"] == "tiny"
    assert manifest["source"]["hidden_size"] == WIDTH
    assert manifest["held_out"] == {"seed": 0, "fraction": 0.25}
    assert (manifest["k"], manifest["dim"], manifest["config"]) == (4, 6, {"rows": "mean-pool"})
    scores = manifest["scores"]["held_out"]
    compressor = make_compressor(str(output))
    errors = []
    for index, rows in enumerate(latents):
        if is_held_out(str(index), 0, 0.25):
            arrays = compressor.compress(rows)
            difference = compressor.decompress(arrays, len(rows)) - rows
            errors.append(np.linalg.norm(difference) / np.linalg.norm(rows))
    assert scores["num_tasks"] == len(errors)
    assert scores["relative_error"] == pytest.approx(np.mean(errors), abs=1e-4)
    card = (output / "README.md").read_text()
    assert f"| relative error (Frobenius norm) | {scores['relative_error']:.3f} |" in card
    assert "# Compressor mine" in card
    assert str(dataset) not in card + (output / "compressor.json").read_text()
    assert f"relative error {scores['relative_error']:.3f}" in capsys.readouterr().err


def test_a_smaller_k_keeps_the_first_rows(
    dataset: Path, latents: list[Rows], tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, "--kind", "pca", "--k", "4", "--dim", "6")) == 0
    whole, less = make_compressor(str(output)), make_compressor(str(output), 2)
    assert whole.content_hash != less.content_hash
    for rows in latents[:10]:
        kept, all_kept = less.compress(rows), whole.compress(rows)
        np.testing.assert_array_equal(kept[COMPRESSED], all_kept[COMPRESSED][:2])
        estimate = less.decompress(kept, len(rows))
        assert estimate.shape == rows.shape
        if len(rows) >= 4:
            both = whole.decompress(all_kept, len(rows))
            np.testing.assert_array_equal(estimate[0], both[0])
            assert np.abs(estimate[-1] - both[-1]).max() > 0


def test_half_precision_is_chosen_by_a_flag(dataset: Path, tmp_path: Path) -> None:
    for dtype in ("fp16", "fp32"):
        more = ("--kind", "pca", "--dim", "6", "--store-dtype", dtype)
        assert main(command(dataset, tmp_path / dtype, *more)) == 0
    half, full = ((tmp_path / each / "compressor.safetensors") for each in ("fp16", "fp32"))
    assert half.stat().st_size < 0.7 * full.stat().st_size
    assert make_compressor(str(tmp_path / "fp16")).output == "coefficients"


def test_interrupted_sums_are_continued(
    dataset: Path, latents: list[Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--kind", "pca", "--k", "4", "--dim", "6")
    assert main(command(dataset, tmp_path / "whole", *more)) == 0
    monkeypatch.setattr(row_recipes, "_SAVE_INTERVAL_S", 0.0)
    moments = Moments
    added: list[int] = []
    add = moments.add

    def stop_after(count: int) -> None:
        def counted(self: Any, rows: Any) -> None:
            if len(added) == count:
                raise KeyboardInterrupt
            added.append(1)
            add(self, rows)

        monkeypatch.setattr(moments, "add", counted)

    stop_after(11)
    assert main(command(dataset, tmp_path / "killed", *more)) == 130
    added.clear()
    stop_after(1000)
    assert main(command(dataset, tmp_path / "killed", *more)) == 0
    assert len(added) == len(training_rows(latents)) - 11
    files = [(tmp_path / name / "compressor.safetensors") for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--kind", "magic"), "--kind: must be one of pca"),
        (("--dim", "25"), "--dim: must be at most 24, the width of the rows"),
        (("--k", "0"), "--k: must be at least 1"),
        (("--rows", "first"), "--rows: needs --k"),
        (("--rows", "full", "--k", "3"), "--rows: must be one of first"),
        (("--limit", "8", "--dim", "24", "--k", "1", "--held-out", "0.7"), "are too few for --dim"),
        (("--held-out", "0.0001", "--dim", "4"), "fewer than 2 usable rows are held out"),
        (("--name", "a b"), "--name: must match"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_line(
    dataset: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(dataset, tmp_path / "mine", *more)) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "mine" / "compressor.json").exists()


def test_a_directory_whose_name_cannot_be_the_compressors_needs_a_name(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(dataset, tmp_path / "a b", "--dim", "4")) == 2
    assert "--name: required" in capsys.readouterr().err
    assert main(command(dataset, tmp_path / "a b", "--dim", "4", "--name", "ab")) == 0
    assert make_compressor(str(tmp_path / "a b")).name == "ab"


def test_a_finished_compressor_is_not_replaced_unless_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, "--dim", "4")) == 0
    assert main(command(dataset, output, "--dim", "5")) == 2
    assert "holds a compressor" in capsys.readouterr().err
    assert manifest_of(output)["dim"] == 4
    assert main(command(dataset, output, "--dim", "5", "--overwrite")) == 0
    assert manifest_of(output)["dim"] == 5


# What the command imports when it runs belongs to the memory of both sizes.
IMPORTS = """
import latentwire_service.compressors.fitting.fit
from latentwire_service.fitting import samples
samples._BUFFER_BYTES = 1 << 20
from latentwire_service.compressors.fitting.command import main
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    # The larger one holds 56 MiB.
    for count in (60, 900):
        wide = [draw.standard_normal((64, 256)).astype(np.float32) for _ in range(count)]
        write_latents(tmp_path / str(count) / "data.parquet", wide)
    more = ("--k", "8", "--dim", "32", "--max-scored", "8", "--steps", "4", "--name", "mine")
    kinds = ("pca", "autoencoder", "resampler")
    runs = [
        command(tmp_path / str(count), tmp_path / f"{kind} {count}", "--kind", kind, *more)
        for kind in kinds
        for count in (60, 900)
    ]
    found = [peak.num_bytes for peak in peaks(IMPORTS, runs)]
    grown = [large - small for small, large in zip(found[::2], found[1::2], strict=True)]
    assert max(grown) < 20 << 20, dict(zip(kinds, grown, strict=True))
