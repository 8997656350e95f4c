"""`latentwire fit-compressor` of kinds that are trained to reconstruct latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentwire.compressors import COMPRESSED, make_compressor
from latentwire.compressors.base import Rows
from latentwire.compressors.directory import read_compressor
from latentwire_service.compressors.fitting.command import main
from latentwire_service.compressors.modules import Autoencoder, Resampler
from support.fits.killed_fit import killed_fit
from support.fits.latent_files import WIDTH, random_latents, write_latents

FAST = ("--device", "cpu", "--threads", "1", "--held-out", "0.25", "--dim", "5")
TRAINED = ("--steps", "6", "--check-every", "2", "--batch-size", "4")
KINDS: dict[str, tuple[str, ...]] = {
    "autoencoder": ("--kind", "autoencoder", "--k", "4"),
    "autoencoder-all": ("--kind", "autoencoder"),
    "autoencoder-novel": ("--kind", "autoencoder", "--k", "4", "--rows", "novel"),
    "resampler": ("--kind", "resampler", "--k", "4"),
}


@pytest.fixture(scope="module")
def latents() -> list[Rows]:
    return random_latents(60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, latents: list[Rows]) -> Path:
    folder = tmp_path_factory.mktemp("reconstruction") / "out"
    write_latents(folder / "data.parquet", latents)
    return folder


def command(dataset: Path, output: Path, *more: str) -> list[str]:
    return [str(dataset), "-o", str(output), *FAST, *more]


def score(output: Path) -> float:
    return read_compressor(output)[0].scores["held_out"]["relative_error"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_as_pca_and_reconstructs_better(
    dataset: Path, latents: list[Rows], tmp_path: Path, kind: str
) -> None:
    pca = ("--kind", "pca", *KINDS[kind][2:])
    for name, more in {
        "pca": pca,
        "start": (*KINDS[kind], "--steps", "0"),
        "trained": (*KINDS[kind], "--steps", "120", "--learning-rate", "0.001", "--patience", "9"),
    }.items():
        assert main(command(dataset, tmp_path / name, *more)) == 0
    compressors = [make_compressor(str(tmp_path / name)) for name in ("pca", "start")]
    for rows in latents[:10]:
        first, second = (each.decompress(each.compress(rows), len(rows)) for each in compressors)
        np.testing.assert_allclose(first, second, atol=2e-3)
    assert score(tmp_path / "trained") < score(tmp_path / "start")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 30])
def test_numpy_computes_what_the_torch_module_does(
    dataset: Path, tmp_path: Path, kind: str, num_rows: int
) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, *KINDS[kind], *TRAINED, "--learning-rate", "0.02")) == 0
    manifest, tensors = read_compressor(output)
    config: dict[str, Any] = dict(manifest.config)
    size, rows_of = config["intermediate_size"], config.get("rows")
    module: Autoencoder | Resampler = Autoencoder(WIDTH, 5, size)
    if kind == "resampler":
        sizes = (config["slots"], config["attention_size"], config["num_heads"])
        module = Resampler(WIDTH, 5, *sizes, size)
    module.load_state_dict({name: torch.from_numpy(each) for name, each in tensors.items()})
    draw = np.random.default_rng(num_rows)
    rows = draw.standard_normal((num_rows, WIDTH)).astype(np.float32) * 3
    reduction = make_compressor(str(rows_of), 4) if rows_of else None
    reduced = reduction.compress(rows) if reduction else {COMPRESSED: rows}
    with torch.no_grad():
        codes = module.codes(torch.from_numpy(reduced[COMPRESSED]))
        estimate = module.rows(codes, num_rows).numpy()
    if reduction:
        estimate = reduction.decompress({**reduced, COMPRESSED: estimate}, num_rows)
    compressor = make_compressor(str(output))
    arrays = compressor.compress(rows)
    np.testing.assert_allclose(arrays[COMPRESSED], codes.numpy(), atol=1e-5, rtol=1e-5)
    made = compressor.decompress(arrays, num_rows)
    np.testing.assert_allclose(made, estimate, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_any_length_has_its_shape(dataset: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "mine"
    assert main(command(dataset, output, *KINDS[kind], *TRAINED)) == 0
    own = read_compressor(output)[0].k
    for k in (None, 2) if own else (None, 3):
        compressor = make_compressor(str(output), k)
        for num_rows in (0, 1, 2, 3, 4, 5, 100):
            rows = np.ones((num_rows, WIDTH), np.float32)
            arrays = compressor.compress(rows)
            most = min(num_rows, compressor.k or num_rows)
            assert arrays[COMPRESSED].shape == (most, 5)
            assert compressor.decompress(arrays, num_rows).shape == rows.shape


@pytest.mark.parametrize("kind", ["autoencoder", "resampler"])
def test_the_same_seed_gives_the_same_compressor(dataset: Path, tmp_path: Path, kind: str) -> None:
    hashes = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        more = (*KINDS[kind], *TRAINED, "--seed", seed)
        assert main(command(dataset, tmp_path / name, *more)) == 0
        hashes.append(make_compressor(str(tmp_path / name)).content_hash)
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["autoencoder", "resampler"])
def test_a_killed_fit_continues_to_the_same_compressor(
    dataset: Path, tmp_path: Path, kind: str
) -> None:
    more = (*KINDS[kind], "--steps", "24", "--check-every", "2", "--patience", "99")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(dataset, whole, *more)) == 0
    state = killed_fit(killed, "fit-compressor", *command(dataset, killed, *more))
    assert not (killed / "compressor.json").exists()
    assert main(command(dataset, killed, *more)) == 0
    assert not state.exists()
    one, other = (load_file(folder / "compressor.safetensors") for folder in (whole, killed))
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_an_unfinished_fit_with_other_settings_is_not_continued(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine"

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    more = (*KINDS["autoencoder"], *TRAINED)
    with pytest.MonkeyPatch.context() as patch:
        module = "latentwire_service.compressors.fitting.fit.learned_compressor"
        patch.setattr(module, interrupted)
        assert main(command(dataset, output, *more)) == 130
    assert main(command(dataset, output, *more, "--seed", "5")) == 2
    assert "holds an unfinished fit with other settings" in capsys.readouterr().err
    assert main(command(dataset, output, *more)) == 0


@pytest.mark.parametrize("kind", ["autoencoder", "resampler"])
@pytest.mark.parametrize("factor", [1e30, 1e-15])
def test_latents_of_any_size_are_fitted_alike(
    dataset: Path, latents: list[Rows], tmp_path: Path, kind: str, factor: float
) -> None:
    scaled = [rows * np.float32(factor) for rows in latents]
    write_latents(tmp_path / "scaled" / "data.parquet", scaled)
    for name, given in (("mine", dataset), ("other", tmp_path / "scaled")):
        assert main(command(given, tmp_path / name, *KINDS[kind], *TRAINED)) == 0
    assert score(tmp_path / "other") == pytest.approx(score(tmp_path / "mine"), rel=0.02)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [("query", "has no tensor query"), ("encode.weight", "has no tensor encode.weight")],
)
def test_a_directory_without_a_tensor_is_refused(
    dataset: Path, tmp_path: Path, tensor: str, reason: str
) -> None:
    from safetensors.torch import save_file

    output = tmp_path / "mine"
    assert main(command(dataset, output, *KINDS["resampler"], "--steps", "0")) == 0
    file = output / "compressor.safetensors"
    tensors = load_file(file)
    removed = tensors.pop(tensor)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=reason):
        make_compressor(str(output))
    save_file({**tensors, tensor: removed[:1].clone()}, file)
    with pytest.raises(ValueError, match=f"tensor {tensor} has shape"):
        make_compressor(str(output))
    save_file({**tensors, tensor: removed, "more": removed.clone()}, file)
    with pytest.raises(ValueError, match="has a tensor that its kind does not: more"):
        make_compressor(str(output))
