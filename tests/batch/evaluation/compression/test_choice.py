"""Which compressors are evaluated, on which tasks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentwire.held_out import is_held_out
from latentwire_batch.evaluation.compression.choice import choose_codecs
from support.batch.evaluating import Compare, latents, learned, write_dataset
from support.bridge_folders import SENDER_WIDTH


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data.parquet", latents(40))


def labels(given: list[str], k: int | None = None) -> list[str]:
    return [choice.codec.label for choice in choose_codecs(given, k)]


def test_codecs_are_named_by_compressor_rows_and_format(tmp_path: Path) -> None:
    folder = learned(tmp_path / "mine")
    given = ["first", "dct:2@bfloat16", str(folder), f"{folder}:2@int4-unrotated", "full@int8"]
    assert labels(given, 4) == [
        *("full", "first:4", "dct:2@bfloat16", "pca:4", "pca:2@int4-unrotated", "full@int8"),
    ]


def test_equal_codecs_are_evaluated_once() -> None:
    assert labels(["first:8", "full", "first", "first:8@float32"], 8) == ["full", "first:8"]


def test_learned_compressors_of_one_name_get_that_of_their_directory(tmp_path: Path) -> None:
    folders = [learned(tmp_path / name, seed) for seed, name in enumerate("abc")]
    assert labels([str(folder) for folder in folders]) == ["full", "pca:4", "b:4", "c:4"]
    twin = learned(tmp_path / "twin", 0)
    assert labels([str(folders[0]), str(twin)]) == ["full", "pca:4"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("first", "--compressor: first: k: is required by compressor first"),
        ("nonsense:8", "--compressor: nonsense:8: 'nonsense' is neither a directory"),
        ("first:0", "--compressor: first:0: k after the colon must be from 1 to"),
        ("first:8@int3", "--compressor: first:8@int3: the number format after @ must be one of"),
        ("full:8", "--compressor: full:8: the full latent has all of its rows"),
        ("first:2@float16-unrotated", "the number format after @ must be one of"),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    compare: Compare, dataset: Path, given: str, text: str
) -> None:
    done = compare(dataset, [given])
    assert done.status == 2
    assert done.err.startswith("latentwire evaluate: ")
    assert text in done.err


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"hidden_size": 7}, "hidden_size of its latents is 24, and compressor pca was made for 7"),
        (
            {"hidden_size": SENDER_WIDTH, "model": "another"},
            "model of its latents is sender, and compressor pca was made for another",
        ),
    ],
)
def test_a_compressor_of_other_latents_is_refused_with_both_values(
    compare: Compare, dataset: Path, tmp_path: Path, source: dict[str, Any], text: str
) -> None:
    folder = learned(tmp_path / "mine", source=source)
    if source["hidden_size"] != SENDER_WIDTH:
        tensors = {"mean": np.zeros(7, np.float32), "components": np.eye(3, 7, dtype=np.float32)}
        save_file(tensors, folder / "compressor.safetensors")
    done = compare(dataset, [str(folder)])
    assert done.status == 2
    assert f"DATASET: {text}" in done.err


def test_neither_bridge_nor_compressor_is_refused(compare: Compare, dataset: Path) -> None:
    done = compare(dataset, [])
    assert (done.status, done.err) == (
        2,
        "latentwire evaluate: --bridge: required without --compressor\n",
    )


def test_flags_that_have_no_effect_are_named(compare: Compare, dataset: Path) -> None:
    done = compare(dataset, ["first:1"], "--url", "http://127.0.0.1:9", "--answers", "x")
    assert done.status == 0
    assert "--url: no effect without --bridge" in done.err
    assert "--answers: no effect with --compressor" in done.err


def held_out(*rules: tuple[int, float]) -> int:
    return sum(all(is_held_out(f"t{i}", *rule) for rule in rules) for i in range(40))


def test_tasks_are_those_that_every_learned_compressor_held_out(
    compare: Compare, dataset: Path, tmp_path: Path
) -> None:
    one = learned(tmp_path / "one", held_out={"seed": 1, "fraction": 0.6})
    two = learned(tmp_path / "two", name="two", held_out={"seed": 2, "fraction": 0.7})
    done = compare(dataset, [str(one)])
    assert done.report["num_tasks"] == held_out((1, 0.6))
    assert done.report["split"]["meaning"] == (
        "held out when compressor pca was fitted: fraction 0.6, seed 1"
    )
    assert "further" not in done.report["split"]
    done = compare(dataset, [str(one), str(two), f"{two}:2", "first:2"])
    assert 2 <= held_out((1, 0.6), (2, 0.7)) < min(held_out((1, 0.6)), held_out((2, 0.7)))
    assert done.report["num_tasks"] == held_out((1, 0.6), (2, 0.7))
    assert done.report["split"]["further"] == [{"seed": 2, "fraction": 0.7}]
    words = "held out by each of: compressor pca (0.6, seed 1), compressor two (0.7, seed 2)"
    assert words in " ".join(done.out.split())
    assert compare(dataset, [str(one)], "--held-out", "1").report["num_tasks"] == 40
    refused = compare(dataset, [str(one), str(two)], "--held-out", "0.65")
    assert "--held-out: 0.65 takes in tasks that compressor pca was fitted to" in refused.err


def test_a_compressor_that_does_not_say_what_it_was_fitted_to_is_named(
    compare: Compare, dataset: Path, tmp_path: Path
) -> None:
    silent = learned(tmp_path / "silent", name="silent")
    done = compare(dataset, [str(silent)])
    assert done.report["num_tasks"] == 40
    assert "--compressor: compressor silent does not say which tasks" in done.err
    stated = learned(tmp_path / "stated", held_out={"seed": 1, "fraction": 0.6})
    done = compare(dataset, [str(silent), str(stated)])
    assert done.report["num_tasks"] == held_out((1, 0.6))
    assert "compressor silent does not say which tasks it was fitted to; some of them" in done.err


def test_coefficients_are_estimates_after_decompression(
    compare: Compare, dataset: Path, tmp_path: Path
) -> None:
    folder = learned(tmp_path / "mine", k=None, config={})
    found = compare(dataset, [str(folder)]).row("pca")
    components = load_file(folder / "compressor.safetensors")["components"].astype(np.float64)
    projector = components.T @ components
    rows = latents(40)
    errors = [np.linalg.norm(each - each @ projector) / np.linalg.norm(each) for each in rows]
    assert found["relative_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert found["num_bytes"] == pytest.approx(np.mean([len(each) * 3 * 4 for each in rows]))
