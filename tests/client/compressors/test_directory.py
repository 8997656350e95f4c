"""Directories of compressors: what is read from them, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentwire.compressors import CompressorError, make_compressor
from latentwire.compressors.directory import read_compressor
from latentwire.compressors.manifest import MANIFEST_NAME, TENSORS_NAME, CompressorManifest

MANIFEST: dict[str, Any] = {
    "format": "latentwire-compressor",
    "version": 1,
    "kind": "pca",
    "source": {"hidden_size": 6},
    "k": 4,
    "dim": 2,
    "config": {"rows": "mean-pool", "list": [1, {"deep": None}]},
    "output": "coefficients",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "mine"
    made.mkdir()
    write(made, MANIFEST)
    save_file({"basis": torch.ones(2, 6)}, made / TENSORS_NAME)
    return made


def write(folder: Path, manifest: object) -> None:
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def test_a_directory_is_read_with_its_defaults(folder: Path) -> None:
    manifest, tensors = read_compressor(folder)
    assert (manifest.name, manifest.kind, manifest.k, manifest.dim) == ("mine", "pca", 4, 2)
    assert manifest.config == MANIFEST["config"]
    assert manifest.source.model is None
    np.testing.assert_array_equal(tensors["basis"], np.ones((2, 6), np.float32))


def test_the_name_in_the_manifest_wins(folder: Path) -> None:
    write(folder, {**MANIFEST, "name": "other"})
    assert read_compressor(folder)[0].name == "other"


def test_a_manifest_is_read_as_it_is_written(folder: Path) -> None:
    manifest, _ = read_compressor(folder)
    write(folder, manifest.model_dump_json())
    assert read_compressor(folder)[0] == manifest


def test_fields_of_later_releases_are_ignored(folder: Path) -> None:
    write(folder, {**MANIFEST, "new": 1, "source": {"hidden_size": 6, "new": 2}})
    assert read_compressor(folder)[0].source.hidden_size == 6


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"name": "other"}, True),
        ({"scores": {"a": {"b": 1.0}}}, True),
        ({"held_out": {"seed": 1, "fraction": 0.1}}, True),
        ({"kind": "autoencoder"}, False),
        ({"dim": 3}, False),
        ({"config": {}}, False),
        ({"output": "rows"}, False),
        ({"source": {"hidden_size": 6, "model": "m"}}, False),
        ({"receiver": {"hidden_size": 3}}, False),
    ],
)
def test_what_decides_the_values_decides_the_hash(changes: dict[str, Any], same: bool) -> None:
    tensors = {"basis": np.ones((2, 6), np.float32)}
    expected = CompressorManifest.model_validate(MANIFEST).hash_with(tensors, 4)
    changed = CompressorManifest.model_validate({**MANIFEST, **changes})
    assert (changed.hash_with(tensors, 4) == expected) is same


def test_k_and_every_tensor_decide_the_hash() -> None:
    manifest = CompressorManifest.model_validate(MANIFEST)
    ones = np.ones((2, 6), np.float32)
    tensors = ({"a": ones}, {"b": ones}, {"a": ones * 2}, {"a": ones.reshape(6, 2)})
    hashes = [manifest.hash_with(given, 4) for given in tensors]
    hashes.append(manifest.hash_with({"a": ones}, 3))
    assert len(set(hashes)) == 5


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "latentwire-bridge"}, "format: must be latentwire-compressor"),
        ({"version": 2}, "version: must be 1"),
        ({"kind": "zip"}, "kind: must be one of pca, autoencoder, resampler, selector"),
        ({"name": "../up"}, "name: must match"),
        ({"k": 0}, "k: must be at least 1"),
        ({"k": 2**40}, "k: must be at most 1048576"),
        ({"k": "4"}, "k: must be a whole number"),
        ({"k": True}, "k: must be a whole number"),
        ({"dim": 0}, "dim: must be at least 1"),
        ({"dim": None}, "dim: must be a whole number"),
        ({"output": "words"}, "output: must be one of rows, coefficients, embeddings"),
        ({"source": {}}, "source.hidden_size: required"),
        ({"source": None}, "source: must be an object"),
        ({"bridge": {"name": "b", "content_hash": "zz"}}, "bridge.content_hash: must match"),
        ({"held_out": {"seed": 0, "fraction": 2}}, "held_out.fraction: must be at most 1"),
        ({"config": []}, "config: must be an object"),
        ({"scores": {"a": {"b": float("nan")}}}, "scores.a.b: must be a finite number"),
    ],
)
def test_a_wrong_manifest_is_refused_by_the_field(
    folder: Path, changes: dict[str, Any], text: str
) -> None:
    write(folder, {**MANIFEST, **changes})
    with pytest.raises(CompressorError) as raised:
        read_compressor(folder)
    assert str(raised.value).startswith(f"compressor: compressor.json: {text}")


@pytest.mark.parametrize("name", sorted({k for k in MANIFEST if k not in ("k", "config")}))
def test_a_manifest_without_what_it_needs_is_refused(folder: Path, name: str) -> None:
    write(folder, {key: value for key, value in MANIFEST.items() if key != name})
    if name in ("format", "version"):
        # They have one value only.
        assert read_compressor(folder)
    else:
        with pytest.raises(CompressorError, match=f"compressor.json: {name}: required"):
            read_compressor(folder)


def damaged_json(text: str) -> Callable[[Path], None]:
    return lambda folder: write(folder, text)


def not_utf_8(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(b'{"kind": "\xff"}')


def a_pipe(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    os.mkfifo(folder / MANIFEST_NAME)


def no_tensors(folder: Path) -> None:
    (folder / TENSORS_NAME).unlink()


def cut_tensors(folder: Path) -> None:
    (folder / TENSORS_NAME).write_bytes((folder / TENSORS_NAME).read_bytes()[:-1])


def infinite_tensors(folder: Path) -> None:
    save_file({"basis": torch.full((2, 6), torch.inf)}, folder / TENSORS_NAME)


def a_folder_for_a_file(folder: Path) -> None:
    (folder / TENSORS_NAME).unlink()
    (folder / TENSORS_NAME).mkdir()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damaged_json("{"), "compressor.json is not JSON"),
        (damaged_json("[" * 100_000), "compressor.json is not JSON"),
        (damaged_json('{"k": 1, "k": 2}'), "compressor.json is not JSON"),
        (damaged_json(" " * (2 << 20)), "compressor.json is larger than 1 MiB"),
        (damaged_json("[]"), "compressor.json: must be an object"),
        (damaged_json("null"), "compressor.json: must be an object"),
        (not_utf_8, "compressor.json is not JSON"),
        (a_pipe, "compressor.json is no file"),
        (no_tensors, "compressor.safetensors cannot be read: No such file or directory"),
        (cut_tensors, "compressor.safetensors is damaged"),
        (infinite_tensors, "compressor.safetensors: basis is not finite"),
        (a_folder_for_a_file, "compressor.safetensors is no file"),
    ],
)
def test_damaged_files_are_refused(folder: Path, damage: Callable[[Path], None], text: str) -> None:
    damage(folder)
    with pytest.raises(CompressorError) as raised:
        make_compressor(str(folder))
    assert str(raised.value) == f"compressor: {text}"


@pytest.mark.parametrize("name", ["first", "full", "a b"])
def test_a_directory_with_a_name_that_is_taken_needs_another_in_its_manifest(
    folder: Path, name: str
) -> None:
    moved = folder.rename(folder.with_name(name))
    with pytest.raises(CompressorError, match="cannot be its name; write another `name` to"):
        read_compressor(moved)
    write(moved, {**MANIFEST, "name": "mine"})
    assert read_compressor(moved)[0].name == "mine"


def test_k_above_the_directorys_is_refused_with_both(folder: Path) -> None:
    with pytest.raises(CompressorError, match="k: must be at most 4, for which .* was made, not 5"):
        make_compressor(str(folder), 5)


def test_k_below_one_is_refused(folder: Path) -> None:
    with pytest.raises(CompressorError, match="^k: must be from 1 to 1048576, not 0$"):
        make_compressor(str(folder), 0)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressorError, match=r"compressor\.json cannot be read: No such file"):
        make_compressor(str(tmp_path))
